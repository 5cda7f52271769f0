/* Socket.IO 5 over Engine.IO 4, WebSocket only, JSON packets. Every server answers commands as the hub does: with an ack
 * `{"ok":true,"data":…}`, after it has said `session:ready`. */
#include "load.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char packet[FILENAME_MAX + 70000];

static bool starts(const uint8_t *p, size_t n, const char *with) {
    size_t k = strlen(with);
    return n >= k && !memcmp(p, with, k);
}

static void opened(struct conn *c) { (void)c; /* the server speaks first */ }

static void enter(struct conn *c) {
    /* The last token is the publisher's, who may speak in any room. */
    const char *token = o.ntokens ? o.tokens[c->publisher ? o.ntokens - 1 : c->id % o.ntokens] : "";
    int n = snprintf(packet, sizeof packet, "40{\"token\":\"%s\",\"protocol\":\"1\",\"client\":\"loadgen\"}", token);
    c->state = ENTERING;
    send_frame(c, 1, packet, (size_t)n);
}

static void join(struct conn *c) {
    char room[ROOM_LEN + 1];
    put_room(room, c->room);
    if (c->publisher) {
        heard_joined(c);
        return;
    }
    int n = snprintf(packet, sizeof packet, "420[\"bench:join\",{\"call_id\":\"%s\"}]", room);
    c->state = JOINING;
    send_frame(c, 1, packet, (size_t)n);
}

/* `o.payload` is the length of the JSON text, ["bench:say",{…}] as a whole. */
static void say(struct conn *c, const char *event, const char *room, const char *token, int64_t number) {
    static const char FORM[] = "[\"%s\",{\"call_id\":\"%s\",\"m\":\"%s\",\"p\":\"%.*s\"}]";
    static char padding[66000];
    if (!padding[0]) memset(padding, 'x', sizeof padding - 1);
    size_t bare = strlen("[\"\",{\"call_id\":\"\",\"m\":\"\",\"p\":\"\"}]") + strlen(event) + ROOM_LEN + TOKEN_LEN;
    int pad = o.payload > bare ? (int)(o.payload - bare) : 0;
    int n = number < 0 ? sprintf(packet, "42") : sprintf(packet, "42%" PRId64, number);
    n += snprintf(packet + n, sizeof packet - (size_t)n, FORM, event, room, token, pad, padding);
    send_frame(c, 1, packet, (size_t)n);
}

uint8_t attachment_byte(size_t i) { return (uint8_t)(i * 131); }

/* One binary event: the packet with a placeholder, and one binary frame of o.size bytes. */
void socketio_send_binary(struct conn *c, const char *event, const char *token, int64_t number) {
    static uint8_t *frame;
    static size_t head;
    if (!frame) {
        uint8_t *plain = zeroed(1, o.size);
        for (size_t i = 0; i < o.size; i++) plain[i] = attachment_byte(i);
        frame = zeroed(1, o.size + 16);
        head = frame_header(frame, 2, o.size);
        masked(frame + head, plain, o.size);
        free(plain);
    }
    char room[ROOM_LEN + 1];
    put_room(room, 0);
    int n = number < 0 ? sprintf(packet, "451-") : sprintf(packet, "451-%" PRId64, number);
    n += snprintf(packet + n, sizeof packet - (size_t)n,
                  "[\"%s\",{\"call_id\":\"%s\",\"m\":\"%s\",\"data\":{\"_placeholder\":true,\"num\":0}}]", event, room, token);
    send_frame(c, 1, packet, (size_t)n);
    send_raw(c, frame, head + o.size);
}

void socketio_ask_stall(struct conn *c) {
    static const char ASK[] = "421[\"bench:stall\",{}]";
    stall_ms = -1;
    send_frame(c, 1, ASK, sizeof ASK - 1);
}

static void heard_event(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    const uint8_t *token;
    if (starts(p, n, "[\"bench:said\",")) {
        if ((token = find_token(p, n))) heard_token(c, token, now);
        else count.foreign++;
    } else if (starts(p, n, "[\"session:ready\",")) {
        if (c->state == WELCOMED) join(c);
    } else if (starts(p, n, "[\"session:closing\",")) {
        char why[160];
        snprintf(why, sizeof why, "%.*s", (int)(n < sizeof why - 1 ? n : sizeof why - 1), p);
        conn_dead(c, why);
    } else count.other++;
}

static void heard_answer(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    if (!memmem(p, n, "\"ok\":true", 9)) {
        if (count.refused++ < 3) fprintf(stderr, "loadgen: refused: %.*s\n", (int)(n < 300 ? n : 300), p);
        if (c->state != READY) conn_dead(c, "the join was refused");
        return;
    }
    const uint8_t *stall = memmem(p, n, "\"stall_ms\":", 11);
    if (c->state == JOINING) heard_joined(c);
    else if (stall) stall_ms = strtod((const char *)stall + 11, NULL);
    else heard_ack(c, find_token(p, n), now);
}

static void heard_packet(struct conn *c, int kind, const uint8_t *p, size_t n, uint64_t now) {
    const uint8_t *token;
    switch (kind) {
    case '0':
        if (c->state == ENTERING) c->state = WELCOMED;
        return;
    case '1': conn_dead(c, "disconnected by the server"); return;
    case '2': heard_event(c, p, n, now); return;
    case '3': heard_answer(c, p, n, now); return;
    case '4': conn_dead(c, "the connection was refused"); return;
    case '5':
        c->attachment_due = true;
        if ((token = find_token(p, n))) heard_token(c, token, now);
        else count.foreign++;
        return;
    }
}

static void text(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    switch (p[0]) {
    case '0': enter(c); return;
    case '1': conn_dead(c, "closed by Engine.IO"); return;
    case '2':
        count.pings++;
        send_frame(c, 1, "3", 1);
        return;
    case '4':
        if (n > 1) heard_packet(c, p[1], p + 2, n - 2, now);
        return;
    }
}

static void binary(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    (void)now;
    if (c->attachment_due) heard_attachment(c, p, n);
    else count.foreign++;
    c->attachment_due = false;
}

/* Only the order of a handshake is known of a compressed frame: enough to connect and stay idle. */
static void opaque(struct conn *c, size_t n) {
    switch (c->state) {
    case OPENED: enter(c); return;
    case ENTERING: c->state = WELCOMED; return;
    case WELCOMED: join(c); return;
    case JOINING: heard_joined(c); return;
    default:
        if (n <= 4) send_frame(c, 1, "3", 1);
        else count.other++;
    }
}

const struct protocol socketio = {"/socket.io/?EIO=4&transport=websocket", opened, text, binary, opaque, say};
