/* What the parts of the load client share. One process, one thread, one run: its state is global. */
#ifndef LOAD_H
#define LOAD_H
#define _GNU_SOURCE
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum mode { CONNECT, IDLE, FANOUT, ROOMS, ACK, RELAY, UPLOAD, DROP };

struct options {
    enum mode mode;
    const char *label, *say;
    int ports[8], nports, pub_port, pids[16], npids;
    unsigned n, rooms, at_once, payload, window, stalled;
    double rate, dur_s, warm_s, drain_s, hold_s;
    bool deflate, browser, spin, centrifugo;
    char **tokens; /* one bearer token a connection, in turn; the last one is the publisher's */
    unsigned ntokens;
    size_t size; /* bytes of a binary message */
};
extern struct options o;

/* ------------------------------------------------------------ measure.c */

void die(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
void *grow(void *p, size_t n);
void *zeroed(size_t n, size_t size);
uint64_t now_ns(void);
uint64_t draw(void);
double draw01(void);

/* Log-linear histogram of nanoseconds: 64 buckets per power of two (error at most 1.6 %). */
struct histogram;
struct histogram *histogram_new(void);
void histogram_add(struct histogram *h, uint64_t ns);
uint64_t histogram_count(const struct histogram *h);
double histogram_us(const struct histogram *h, double percent); /* 100: the largest */

/* CPU seconds of the watched processes, all threads; what each used since the last call is in cpu_of. */
double cpu_s(void);
extern double cpu_of[16];
long memory_kb(const char *key);

/* --------------------------------------------------------- connection.c */

enum state { CONNECTING, UPGRADING, OPENED, ENTERING, WELCOMED, JOINING, READY, DEAD };

struct conn {
    int fd;
    uint8_t state, server;
    bool wants_write, publisher, stalled, attachment_due;
    unsigned id, room, slot, outstanding;
    uint8_t *in, *out;
    size_t in_len, in_cap, in_need, out_len, out_off, out_cap;
    uint64_t started, sent, asked_at;
    uint32_t *expected; /* the next sequence number, by publisher slot */
    uint32_t command;   /* Centrifugo's number of the last command */
};

extern struct conn *conns;
extern unsigned nconns, nready, ndead, nopening;
extern uint64_t idle_ns;   /* waited in epoll */
extern uint64_t stop_at_ns; /* whole run; past it the client gives up */

void connections_start(void);
void open_connection(struct conn *c);
void conn_dead(struct conn *c, const char *why); /* why == NULL: on purpose */
void conn_deaf(struct conn *c);                  /* from now on it reads nothing */
bool conn_kept(const struct conn *c);             /* the server has not hung up */
void send_raw(struct conn *c, const void *p, size_t n);
void send_frame(struct conn *c, int opcode, const void *p, size_t n);
size_t frame_header(uint8_t *h, int opcode, size_t n);
void masked(uint8_t *to, const uint8_t *from, size_t n);
void poll_once(int64_t wait_ns);

/* ----------------------------------------- socketio.c and centrifugo.c */

struct protocol {
    const char *path;
    void (*opened)(struct conn *c); /* the WebSocket is there */
    void (*text)(struct conn *c, const uint8_t *p, size_t n, uint64_t now);
    void (*binary)(struct conn *c, const uint8_t *p, size_t n, uint64_t now);
    void (*opaque)(struct conn *c, size_t n); /* a compressed frame: counted, not inflated */
    /* A message for a room, with an ack where `number` is not negative. */
    void (*say)(struct conn *c, const char *event, const char *room, const char *token, int64_t number);
};
extern const struct protocol socketio, centrifugo, *protocol;
void socketio_send_binary(struct conn *c, const char *event, const char *token, int64_t number);
void socketio_ask_stall(struct conn *c);

/* -------------------------------------------------------------- work.c */

#define TOKEN_LEN 46
#define ROOM_LEN 36

extern struct {
    uint64_t frames, bytes, deliveries, acks, published, payload, pings;
    uint64_t duplicated, reordered, foreign, refused, other, errors;
} count;
extern struct histogram *latency, *connecting;
extern bool measuring, stopping;
extern uint64_t measured_from, expected_total, delivered_total;
extern unsigned in_flight;
extern struct conn *publisher;
extern double stall_ms; /* the server's own answer, -1 while it is due */

void work_start(void);
void put_room(char *to, unsigned room); /* ROOM_LEN characters and a zero */
const uint8_t *find_token(const uint8_t *p, size_t n);
void heard_joined(struct conn *c);
void heard_token(struct conn *c, const uint8_t *token, uint64_t now);
void heard_ack(struct conn *c, const uint8_t *token, uint64_t now);
void heard_attachment(struct conn *c, const uint8_t *p, size_t n);
void say_next(uint64_t at);
void ask_next(struct conn *c, uint64_t at);
void send_window(void);
uint8_t attachment_byte(size_t i);

#endif
