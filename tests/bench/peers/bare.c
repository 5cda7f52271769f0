/* bare: what the kernel allows. One epoll loop that speaks just enough Socket.IO for the load client and writes a ready
 * WebSocket frame to every member of a room with one send() each. It checks no token and parses no JSON, it only looks for
 * the room; it is no server for anything else.
 *
 * usage: bare PORT [drop|double|swap]     Loopback only. The second word makes it lose, repeat or exchange every 50th
 * delivery: so that the load client can be shown to notice. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROOMS 65536
#define MOST_QUEUED (1u << 20)
#define FRAME_BYTES (1u << 20)

struct conn {
    int fd, room;
    bool upgraded, wants_write, attachment_due;
    uint8_t *in, *out;
    size_t in_len, in_cap, out_len, out_off, out_cap;
    char head[512]; /* of a binary event whose attachment is due */
};

static struct room {
    struct conn **members;
    unsigned n, cap;
} rooms[ROOMS];
static int poll_fd;
static const char *fault = "";

static void *grow(void *p, size_t n) {
    void *q = realloc(p, n);
    if (!q) exit(3);
    return q;
}

static void hang_up(struct conn *c) {
    struct room *r = c->room >= 0 ? &rooms[c->room] : NULL;
    for (unsigned i = 0; r && i < r->n; i++)
        if (r->members[i] == c) {
            r->members[i] = r->members[--r->n];
            break;
        }
    close(c->fd);
    c->fd = -1; /* not freed: events of this batch may still point here */
}

static void interest(struct conn *c, bool write) {
    if (c->wants_write == write) return;
    c->wants_write = write;
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static void out(struct conn *c, const void *p, size_t n) {
    if (c->fd < 0) return;
    const uint8_t *b = p;
    if (!c->out_len) {
        ssize_t k = send(c->fd, b, n, MSG_NOSIGNAL);
        if (k < 0 && errno != EAGAIN) {
            hang_up(c);
            return;
        }
        if (k > 0) b += k, n -= (size_t)k;
        if (!n) return;
    }
    if (c->out_len > MOST_QUEUED) {
        hang_up(c);
        return;
    }
    if (c->out_len + n > c->out_cap) c->out = grow(c->out, c->out_cap = (c->out_len + n) * 2);
    memcpy(c->out + c->out_len, b, n);
    c->out_len += n;
    interest(c, true);
}

static void flush(struct conn *c) {
    while (c->out_off < c->out_len) {
        ssize_t k = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (k < 0 && errno == EAGAIN) return;
        if (k < 0) {
            hang_up(c);
            return;
        }
        c->out_off += (size_t)k;
    }
    c->out_off = c->out_len = 0;
    interest(c, false);
}

static size_t frame(uint8_t *f, int opcode, const void *p, size_t n) {
    size_t head = 2;
    f[0] = 0x80 | (uint8_t)opcode;
    if (n < 126) f[1] = (uint8_t)n;
    else if (n < 65536) f[1] = 126, f[2] = (uint8_t)(n >> 8), f[3] = (uint8_t)n, head = 4;
    else {
        f[1] = 127, head = 10;
        for (int i = 0; i < 8; i++) f[2 + i] = (uint8_t)((uint64_t)n >> (56 - 8 * i));
    }
    memcpy(f + head, p, n);
    return head + n;
}

static void say(struct conn *c, const char *text) {
    static uint8_t f[4096];
    out(c, f, frame(f, 1, text, strlen(text)));
}

static void deliver(struct room *r, const uint8_t *f, size_t n) {
    static unsigned long deliveries;
    static uint8_t kept[FRAME_BYTES];
    static size_t kept_n;
    static struct conn *kept_for;
    for (unsigned i = 0; i < r->n; i++) {
        struct conn *c = r->members[i];
        bool bad = *fault && ++deliveries % 50 == 0;
        if (bad && !strcmp(fault, "drop")) continue;
        if (bad && !strcmp(fault, "swap") && !kept_for && n <= sizeof kept) {
            memcpy(kept, f, kept_n = n);
            kept_for = c;
            continue;
        }
        out(c, f, n);
        if (bad && !strcmp(fault, "double")) out(c, f, n);
        if (kept_for == c) {
            out(c, kept, kept_n);
            kept_for = NULL;
        }
    }
}

/* The number in the last group of a room's UUID. */
static struct room *room_of(const uint8_t *p, size_t n) {
    static const char KEY[] = "\"call_id\":\"00000000-0000-4000-8000-";
    const uint8_t *at = memmem(p, n, KEY, sizeof KEY - 1);
    return at ? &rooms[strtoul((const char *)at + sizeof KEY - 1, NULL, 16) % ROOMS] : NULL;
}

static void join(struct conn *c, struct room *r) {
    c->room = (int)(r - rooms);
    if (r->n == r->cap) r->members = grow(r->members, (r->cap = r->cap ? r->cap * 2 : 8) * sizeof *r->members);
    r->members[r->n++] = c;
}

static void heard_attachment(struct conn *c, const uint8_t *p, size_t n) {
    static uint8_t f[FRAME_BYTES];
    char text[600];
    if (!c->attachment_due || n > sizeof f - 1024) return;
    c->attachment_due = false;
    const char *arguments = strchr(c->head, '[');
    if (!strncmp(arguments, "[\"bench:upload\"", 15)) {
        snprintf(text, sizeof text, "43%.*s[{\"ok\":true}]", (int)(arguments - c->head - 4), c->head + 4);
        say(c, text);
        return;
    }
    struct room *r = room_of((uint8_t *)c->head, strlen(c->head));
    snprintf(text, sizeof text, "451-[\"bench:relayed\"%s", strchr(arguments, ','));
    size_t k = frame(f, 1, text, strlen(text));
    k += frame(f + k, 2, p, n);
    if (r) deliver(r, f, k);
}

static void heard_event(struct conn *c, const uint8_t *p, size_t n) {
    static uint8_t f[FRAME_BYTES], text[FRAME_BYTES];
    const uint8_t *arguments = memchr(p, '[', n);
    if (!arguments || n > sizeof text - 1024) return;
    size_t left = n - (size_t)(arguments - p);
    int digits = (int)(arguments - p - 2);
    const uint8_t *payload = memchr(arguments, ',', left);
    if (!payload) return;
    size_t size = left - (size_t)(payload + 1 - arguments);
    struct room *r = room_of(arguments, left);
    if (!memcmp(arguments, "[\"bench:join\"", 13)) {
        if (r) join(c, r);
        int k = sprintf((char *)text, "43%.*s[{\"ok\":true,\"data\":{}}]", digits, (const char *)p + 2);
        out(c, f, frame(f, 1, text, (size_t)k));
    } else if (!memcmp(arguments, "[\"bench:echo\"", 13)) {
        int k = sprintf((char *)text, "43%.*s[{\"ok\":true,\"data\":", digits, (const char *)p + 2);
        memcpy(text + k, payload + 1, size - 1);
        memcpy(text + k + size - 1, "}]", 2);
        out(c, f, frame(f, 1, text, (size_t)k + size + 1));
    } else if (r) {
        static const char HEAD[] = "42[\"bench:said\",";
        memcpy(text, HEAD, sizeof HEAD - 1);
        memcpy(text + sizeof HEAD - 1, payload + 1, size);
        deliver(r, f, frame(f, 1, text, sizeof HEAD - 1 + size));
    }
}

static void heard_text(struct conn *c, const uint8_t *p, size_t n) {
    if (n < 2 || p[0] != '4') return;
    if (p[1] == '0') {
        say(c, "40{\"sid\":\"x\"}");
        say(c, "42[\"session:ready\",{\"session_id\":\"x\"}]");
    } else if (p[1] == '2') heard_event(c, p, n);
    else if (p[1] == '5' && n < sizeof c->head && memchr(p, '[', n)) {
        memcpy(c->head, p, n);
        c->head[n] = 0;
        c->attachment_due = true;
    }
}

static void upgrade(struct conn *c) {
    /* The accept value of the one key that the load client sends. */
    static const char ANSWER[] =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    c->upgraded = true;
    out(c, ANSWER, sizeof ANSWER - 1);
    say(c, "0{\"sid\":\"x\",\"upgrades\":[],\"pingInterval\":25000,\"pingTimeout\":20000,\"maxPayload\":1000000}");
}

static void unmask(uint8_t *p, const uint8_t *key, size_t n) {
    uint32_t k, v;
    size_t i = 0;
    memcpy(&k, key, 4);
    for (; i + 4 <= n; i += 4) memcpy(&v, p + i, 4), v ^= k, memcpy(p + i, &v, 4);
    for (; i < n; i++) p[i] ^= key[i & 3];
}

static void heard(struct conn *c) {
    size_t used = 0;
    if (!c->upgraded) {
        uint8_t *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return;
        used = (size_t)(end - c->in) + 4;
        upgrade(c);
    }
    while (c->fd >= 0 && c->in_len - used >= 6) {
        uint8_t *f = c->in + used;
        size_t n = f[1] & 127, head = 2, left = c->in_len - used;
        if (n == 126) n = (size_t)f[2] << 8 | f[3], head = 4;
        else if (n == 127) {
            if (left < 14) break;
            n = 0, head = 10;
            for (int i = 0; i < 8; i++) n = n << 8 | f[2 + i];
        }
        if (left < head + 4 + n) break;
        uint8_t *p = f + head + 4;
        unmask(p, f + head, n);
        if ((f[0] & 15) == 1) heard_text(c, p, n);
        else if ((f[0] & 15) == 2) heard_attachment(c, p, n);
        else if ((f[0] & 15) == 8) hang_up(c);
        used += head + 4 + n;
    }
    if (c->fd < 0) return;
    memmove(c->in, c->in + used, c->in_len - used);
    c->in_len -= used;
}

static void readable(struct conn *c) {
    for (bool full = true; full && c->fd >= 0;) {
        if (c->in_cap - c->in_len < 4096) c->in = grow(c->in, c->in_cap = c->in_cap * 2 + 4096);
        ssize_t n = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) hang_up(c);
        if (n <= 0) break;
        full = (size_t)n == c->in_cap - c->in_len;
        c->in_len += (size_t)n;
    }
    if (c->fd >= 0 && c->in_len) heard(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct conn *c = grow(NULL, sizeof *c);
        memset(c, 0, sizeof *c);
        c->fd = fd, c->room = -1;
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    if (argc > 2) fault = argv[2];
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)atoi(argv[1])),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) {
        perror("bind");
        return 1;
    }
    poll_fd = epoll_create1(0);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &e);
    static struct epoll_event events[1024];
    for (;;) {
        int k = epoll_wait(poll_fd, events, 1024, -1);
        for (int i = 0; i < k; i++) {
            struct conn *c = events[i].data.ptr;
            if (!c) accept_all(listener);
            else if (c->fd >= 0) {
                if (events[i].events & EPOLLOUT) flush(c);
                if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP)) readable(c);
            }
        }
    }
}
