/* The work: what is sent when, and the proof that it all arrived.
 *
 * Every message carries a token `~room:8 slot:4 seq:8 id:8 at:16~` in hex. Per receiver and sender the sequence has to be
 * without gaps and in order, so every lost, doubled or overtaken message is counted; `at` gives the latency over all
 * receivers, on one clock. In a closed loop a message is complete when all members have it, and then the next is sent. */
#include "load.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typeof(count) count;
struct histogram *latency, *connecting;
bool measuring, stopping;
uint64_t measured_from, expected_total, delivered_total;
unsigned in_flight;
struct conn *publisher;
double stall_ms = -1;
const struct protocol *protocol = &socketio;

static unsigned members, slots;
static uint32_t *sequence; /* the next number, by room and slot */
#define IDS 0x100000u
static uint32_t *missing; /* receivers that a message has yet to reach, by id */
static uint32_t next_id;

/* One member a connection, dealt out so that rooms fill evenly; a publisher of its own stands outside the rooms. */
void work_start(void) {
    bool apart = o.mode == FANOUT || o.mode == RELAY || o.mode == DROP;
    nconns = o.n + o.stalled + apart;
    members = o.n / o.rooms;
    if (!members || o.n % o.rooms) die("--n must be a multiple of --rooms");
    slots = o.mode == ROOMS ? members : 1;
    latency = histogram_new();
    connecting = histogram_new();
    conns = zeroed(nconns, sizeof *conns);
    sequence = zeroed((size_t)o.rooms * slots, sizeof *sequence);
    missing = zeroed(IDS, sizeof *missing);
    for (unsigned i = 0; i < nconns; i++) {
        struct conn *c = &conns[i];
        c->id = i, c->fd = -1;
        c->stalled = i >= o.n && i < o.n + o.stalled;
        c->room = c->stalled ? 0 : i % o.rooms;
        c->slot = o.mode == ROOMS ? i / o.rooms : 0;
        /* The members of one room are spread over all servers. */
        c->server = (uint8_t)((i / o.rooms) % (unsigned)o.nports);
        c->expected = zeroed(slots, sizeof *c->expected);
    }
    if (!apart) return;
    publisher = &conns[nconns - 1];
    publisher->publisher = true;
    publisher->room = publisher->server = 0;
    if (o.pub_port) o.ports[o.nports] = o.pub_port, publisher->server = (uint8_t)o.nports;
}

void put_room(char *to, unsigned room) { sprintf(to, "00000000-0000-4000-8000-%012x", room); }

/* --------------------------------------------------------------- tokens */

static const char HEX[] = "0123456789abcdef";

static char *put_hex(char *p, uint64_t v, int digits) {
    for (int i = digits - 1; i >= 0; i--) *p++ = HEX[(v >> (4 * i)) & 15];
    return p;
}

static uint64_t get_hex(const uint8_t *p, int digits) {
    uint64_t v = 0;
    for (int i = 0; i < digits; i++) v = v << 4 | (uint64_t)(p[i] <= '9' ? p[i] - '0' : (p[i] | 32) - 'a' + 10);
    return v;
}

static const char *token_of(unsigned room, unsigned slot, uint32_t seq, uint32_t id, uint64_t at) {
    static char token[TOKEN_LEN + 1];
    char *p = token;
    *p++ = '~';
    p = put_hex(p, room, 8), p = put_hex(p, slot, 4), p = put_hex(p, seq, 8), p = put_hex(p, id, 8), p = put_hex(p, at, 16);
    *p++ = '~', *p = 0;
    return token;
}

const uint8_t *find_token(const uint8_t *p, size_t n) {
    const uint8_t *end = p + n;
    while (p < end && (p = memchr(p, '~', (size_t)(end - p)))) {
        if (end - p >= TOKEN_LEN && p[TOKEN_LEN - 1] == '~') return p;
        p++;
    }
    return NULL;
}

/* -------------------------------------------------------------- sending */

static void say(struct conn *c, unsigned room, uint64_t at) {
    uint32_t seq = sequence[(size_t)room * slots + c->slot]++, id = next_id++ % IDS;
    missing[id] = members;
    in_flight++;
    expected_total += members;
    count.published++;
    const char *token = token_of(room, c->slot, seq, id, at);
    if (o.mode == RELAY) {
        socketio_send_binary(c, "bench:relay", token, -1);
        return;
    }
    char name[ROOM_LEN + 1];
    put_room(name, room);
    protocol->say(c, o.say, name, token, -1);
}

/* A publisher takes the rooms in turn; of members, a random one speaks in its own room. */
void say_next(uint64_t at) {
    static unsigned room;
    if (o.mode != ROOMS) {
        say(publisher, room, at);
        room = (room + 1) % o.rooms;
        return;
    }
    struct conn *c;
    do c = &conns[draw() % o.n];
    while (c->state != READY);
    say(c, c->room, at);
}

void ask_next(struct conn *c, uint64_t at) {
    if (c->state != READY) return;
    c->outstanding++, c->sent++;
    c->asked_at = at;
    count.published++;
    const char *token = token_of(c->room, 0, (uint32_t)c->sent, 0, at);
    int64_t number = (int64_t)(c->sent & 0xffffff) + 2;
    if (o.mode == UPLOAD) {
        socketio_send_binary(c, "bench:upload", token, number);
        return;
    }
    char name[ROOM_LEN + 1];
    put_room(name, c->room);
    protocol->say(c, "bench:echo", name, token, number);
}

/* The messages that are outstanding from now on. */
void send_window(void) {
    if (o.rate > 0) return;
    for (unsigned w = 0; w < o.window; w++) {
        if (o.mode == FANOUT || o.mode == ROOMS || o.mode == RELAY) say_next(now_ns());
        else if (o.mode == ACK || o.mode == UPLOAD)
            for (unsigned i = 0; i < o.n; i++) ask_next(&conns[i], now_ns());
    }
}

/* -------------------------------------------------------------- hearing */

void heard_joined(struct conn *c) {
    c->state = READY;
    nopening--, nready++;
    histogram_add(connecting, now_ns() - c->started);
    if (c->stalled) conn_deaf(c);
}

void heard_token(struct conn *c, const uint8_t *token, uint64_t now) {
    unsigned room = (unsigned)get_hex(token + 1, 8), slot = (unsigned)get_hex(token + 9, 4);
    uint32_t seq = (uint32_t)get_hex(token + 13, 8), id = (uint32_t)get_hex(token + 21, 8);
    uint64_t at = get_hex(token + 29, 16);
    if (room != c->room || slot >= slots || id >= IDS) {
        count.foreign++;
        return;
    }
    uint32_t *expected = &c->expected[slot];
    if (seq < *expected) {
        count.duplicated++;
        return;
    }
    if (seq > *expected) count.reordered++;
    *expected = seq + 1;
    delivered_total++;
    count.deliveries += measuring;
    /* Also what comes when time is up: the latest are the slowest. */
    if (at >= measured_from) histogram_add(latency, now > at ? now - at : 0);
    if (missing[id] && --missing[id] == 0) {
        in_flight--;
        if (o.rate == 0 && !stopping) say_next(now_ns());
    }
}

void heard_ack(struct conn *c, const uint8_t *token, uint64_t now) {
    if (o.mode != ACK && o.mode != UPLOAD) return;
    if (o.mode == ACK && !token) {
        count.foreign++;
        return;
    }
    uint64_t at = token ? get_hex(token + 29, 16) : c->asked_at;
    c->outstanding--;
    if (at >= measured_from) histogram_add(latency, now > at ? now - at : 0);
    if (measuring) {
        count.acks++;
        if (o.mode == UPLOAD) count.payload += o.size;
    }
    if (o.rate == 0 && !stopping) ask_next(c, now_ns());
}

void heard_attachment(struct conn *c, const uint8_t *p, size_t n) {
    (void)c;
    /* Length, and both ends: a look at every byte would be this client's limit and no server's. */
    bool whole = n == o.size;
    for (size_t i = 0; whole && i < 64 && i < n; i++)
        whole = p[i] == attachment_byte(i) && p[n - 1 - i] == attachment_byte(n - 1 - i);
    if (!whole) count.foreign++;
    if (measuring) count.payload += n;
}
