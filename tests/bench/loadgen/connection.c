/* WebSocket connections over epoll: handshake, frames out (masked), frames in (checked). Loopback only. */
#include "load.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct conn *conns;
unsigned nconns, nready, ndead, nopening;
uint64_t idle_ns, stop_at_ns;

static int poll_fd;
static uint8_t *shared; /* most reads are whole frames: only a torn one needs a buffer of its own */
#define SHARED_BYTES (1u << 20)
#define FRAME_BYTES 70000
/* One mask for all: a server has to unmask whatever it is. */
static const uint8_t MASK[4] = {0x37, 0xfa, 0x21, 0x3d};

void connections_start(void) {
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (poll_fd < 0) die("epoll_create1: %s", strerror(errno));
    shared = zeroed(1, SHARED_BYTES);
}

void conn_dead(struct conn *c, const char *why) {
    if (c->state == DEAD) return;
    if (c->state == READY) nready--;
    else nopening--;
    if (why && count.errors++ < 5) fprintf(stderr, "loadgen: connection %u, state %d: %s\n", c->id, c->state, why);
    c->state = DEAD;
    ndead++;
    close(c->fd);
    c->fd = -1;
}

static void interest(struct conn *c, bool write) {
    if (c->wants_write == write || c->state == DEAD) return;
    c->wants_write = write;
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

void conn_deaf(struct conn *c) {
    epoll_ctl(poll_fd, EPOLL_CTL_DEL, c->fd, NULL);
}

/* Seen from the server's end: ours stays open, since behind a full window no goodbye gets through. */
bool conn_kept(const struct conn *c) {
    struct sockaddr_in own;
    socklen_t size = sizeof own;
    if (c->fd < 0 || getsockname(c->fd, (struct sockaddr *)&own, &size)) return false;
    FILE *f = fopen("/proc/net/tcp", "r");
    if (!f) die("/proc/net/tcp: %s", strerror(errno));
    char line[300];
    bool kept = false;
    while (!kept && fgets(line, sizeof line, f)) {
        unsigned local, remote, state;
        kept = sscanf(line, " %*u: %*x:%x %*x:%x %x", &local, &remote, &state) == 3 &&
               local == (unsigned)o.ports[c->server] && remote == ntohs(own.sin_port) && state == TCP_ESTABLISHED;
    }
    fclose(f);
    return kept;
}

/* ------------------------------------------------------------------ out */

static void flush(struct conn *c) {
    while (c->out_off < c->out_len) {
        ssize_t k = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL);
        if (k < 0 && errno == EAGAIN) break;
        if (k < 0) {
            conn_dead(c, strerror(errno));
            return;
        }
        c->out_off += (size_t)k;
    }
    if (c->out_off == c->out_len) c->out_off = c->out_len = 0;
    interest(c, c->out_len > 0);
}

void send_raw(struct conn *c, const void *p, size_t n) {
    if (c->state == DEAD) return;
    const uint8_t *b = p;
    if (!c->out_len) {
        ssize_t k = send(c->fd, b, n, MSG_NOSIGNAL);
        if (k < 0 && errno != EAGAIN) {
            conn_dead(c, strerror(errno));
            return;
        }
        if (k > 0) b += k, n -= (size_t)k;
        if (!n) return;
    }
    if (c->out_len + n > c->out_cap) c->out = grow(c->out, c->out_cap = (c->out_len + n) * 2);
    memcpy(c->out + c->out_len, b, n);
    c->out_len += n;
    interest(c, true);
}

size_t frame_header(uint8_t *h, int opcode, size_t n) {
    size_t k = 2;
    h[0] = 0x80 | (uint8_t)opcode;
    if (n < 126) h[1] = 0x80 | (uint8_t)n;
    else if (n < 65536) {
        h[1] = 0x80 | 126, h[2] = (uint8_t)(n >> 8), h[3] = (uint8_t)n;
        k = 4;
    } else {
        h[1] = 0x80 | 127;
        for (int i = 0; i < 8; i++) h[2 + i] = (uint8_t)((uint64_t)n >> (56 - 8 * i));
        k = 10;
    }
    memcpy(h + k, MASK, 4);
    return k + 4;
}

void masked(uint8_t *to, const uint8_t *from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = from[i] ^ MASK[i & 3];
}

void send_frame(struct conn *c, int opcode, const void *p, size_t n) {
    static uint8_t buffer[FRAME_BYTES + 16];
    if (n > FRAME_BYTES) die("a frame of %zu bytes", n);
    size_t k = frame_header(buffer, opcode, n);
    masked(buffer + k, p, n);
    send_raw(c, buffer, k + n);
}

/* ------------------------------------------------------------------- in */

static void closed_by_server(struct conn *c, const uint8_t *p, size_t n) {
    char why[160] = "close frame without code";
    if (n >= 2) {
        unsigned code = (unsigned)p[0] << 8 | p[1];
        snprintf(why, sizeof why, "close frame %u %.*s", code, (int)(n - 2 < 120 ? n - 2 : 120), p + 2);
    }
    conn_dead(c, why);
}

static void heard_frame(struct conn *c, unsigned opcode, bool compressed, const uint8_t *p, size_t n, uint64_t now) {
    count.frames++;
    if (opcode == 8) closed_by_server(c, p, n);
    else if (opcode == 9) send_frame(c, 10, p, n);
    else if (compressed) protocol->opaque(c, n);
    else if (opcode == 2) protocol->binary(c, p, n, now);
    else if (opcode == 1 && n) protocol->text(c, p, n, now);
}

/* The answer to our handshake; 0 while it is not complete. */
static size_t heard_handshake(struct conn *c, const uint8_t *b, size_t n) {
    const uint8_t *end = memmem(b, n, "\r\n\r\n", 4);
    if (!end) return 0;
    /* The accept value of the key that send_handshake sends (RFC 6455 section 1.3). */
    if (n < 12 || memcmp(b + 9, "101", 3) || !memmem(b, n, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", 28)) {
        const uint8_t *line = memchr(b, '\r', n);
        char why[120];
        snprintf(why, sizeof why, "handshake refused: %.*s", (int)(line && line - b < 80 ? line - b : 0), b);
        conn_dead(c, why);
        return n;
    }
    c->state = OPENED;
    protocol->opened(c);
    return (size_t)(end - b) + 4;
}

/* Takes whole frames off the front; how many bytes they were. */
static size_t heard(struct conn *c, const uint8_t *b, size_t n, uint64_t now) {
    size_t used = 0;
    c->in_need = 0;
    if (c->state == UPGRADING && !(used = heard_handshake(c, b, n))) return 0;
    while (n - used >= 2 && c->state != DEAD) {
        const uint8_t *f = b + used;
        size_t left = n - used, length = f[1] & 127, head = 2;
        if (f[1] & 0x80 || !(f[0] & 0x80) || !(f[0] & 15)) {
            conn_dead(c, "a masked or fragmented frame from the server");
            return n;
        }
        if (length == 126) {
            if (left < 4) break;
            length = (size_t)f[2] << 8 | f[3];
            head = 4;
        } else if (length == 127) {
            if (left < 10) break;
            length = 0;
            for (int i = 0; i < 8; i++) length = length << 8 | f[2 + i];
            head = 10;
        }
        if (left < head + length) {
            c->in_need = head + length;
            break;
        }
        heard_frame(c, f[0] & 15, f[0] & 0x40, f + head, length, now);
        used += head + length;
    }
    return used;
}

static void keep(struct conn *c, const uint8_t *from, size_t n) {
    size_t need = c->in_need > n ? c->in_need : n + 4096;
    if (c->in_cap < need) c->in = grow(c->in, c->in_cap = need + 4096);
    if (from != c->in) memcpy(c->in, from, n);
    c->in_len = n;
}

static void readable(struct conn *c) {
    for (int round = 0; round < 16 && c->state != DEAD; round++) {
        uint8_t *buffer = shared;
        size_t cap = SHARED_BYTES, have = 0;
        if (c->in_len) {
            keep(c, c->in, c->in_len);
            buffer = c->in, cap = c->in_cap, have = c->in_len;
        }
        ssize_t k = recv(c->fd, buffer + have, cap - have, 0);
        if (k == 0) conn_dead(c, "closed by the server");
        else if (k < 0 && errno != EAGAIN) conn_dead(c, strerror(errno));
        if (k <= 0) return;
        count.bytes += (uint64_t)k;
        size_t total = have + (size_t)k, used = heard(c, buffer, total, now_ns());
        if (c->state == DEAD) return;
        if (buffer == c->in) {
            memmove(c->in, c->in + used, total - used);
            c->in_len = total - used;
        } else if (total > used) keep(c, shared + used, total - used);
        if ((size_t)k < cap - have) return; /* drained */
    }
}

/* -------------------------------------------------------------- opening */

void open_connection(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    int one = 1, small = 16384;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->stalled) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)o.ports[c->server]),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->started = now_ns();
    c->state = CONNECTING;
    nopening++;
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) {
        conn_dead(c, strerror(errno));
        return;
    }
    c->wants_write = true;
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e) < 0) die("epoll_ctl: %s", strerror(errno));
}

/* What a browser sends besides; the cookie is what a session cookie is long. */
static const char BROWSER[] =
    "Pragma: no-cache\r\nCache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 "
    "Safari/537.36\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\n"
    "Cookie: session=0123456789abcdef0123456789abcdef0123456789abcdef\r\n";
static const char DEFLATE[] = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

static void send_handshake(struct conn *c) {
    char b[2048];
    int n = snprintf(b, sizeof b,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s%s\r\n",
                     protocol->path, o.ports[c->server], o.browser ? BROWSER : "", o.deflate ? DEFLATE : "");
    c->state = UPGRADING;
    send_raw(c, b, (size_t)n);
}

static void writable(struct conn *c) {
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            conn_dead(c, strerror(error));
            return;
        }
        send_handshake(c);
    }
    if (c->state != DEAD) flush(c);
}

void poll_once(int64_t wait_ns) {
    static struct epoll_event events[1024];
    uint64_t from = now_ns();
    if (from > stop_at_ns) die("time limit reached (%u of %u ready)", nready, nconns);
    struct timespec wait = {wait_ns / 1000000000, wait_ns % 1000000000};
    int k = epoll_pwait2(poll_fd, events, 1024, &wait, NULL);
    if (k < 0 && errno != EINTR) die("epoll_pwait2: %s", strerror(errno));
    if (k == 0 || wait_ns > 0) idle_ns += now_ns() - from;
    for (int i = 0; i < k; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->state != DEAD && events[i].events & EPOLLOUT) writable(c);
        if (c->state != DEAD && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
    }
}
