/* Centrifugo's JSON protocol: commands and replies as lines, several of them in one frame. */
#include "load.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static char line[70000];

static bool starts(const uint8_t *p, size_t n, const char *with) {
    size_t k = strlen(with);
    return n >= k && !memcmp(p, with, k);
}

/* The official client sends connect and subscribe in its first frame. */
static void opened(struct conn *c) {
    char room[ROOM_LEN + 1];
    put_room(room, c->room);
    const char *token = o.ntokens ? o.tokens[c->publisher ? o.ntokens - 1 : c->id % o.ntokens] : "";
    int n = snprintf(line, sizeof line, "{\"id\":1,\"connect\":{\"token\":\"%s\",\"name\":\"js\"}}", token);
    if (!c->publisher)
        n += snprintf(line + n, sizeof line - (size_t)n, "\n{\"id\":2,\"subscribe\":{\"channel\":\"%s\"}}", room);
    c->command = 2;
    c->state = ENTERING;
    send_frame(c, 1, line, (size_t)n);
}

static void say(struct conn *c, const char *event, const char *room, const char *token, int64_t number) {
    static char padding[66000];
    if (!padding[0]) memset(padding, 'x', sizeof padding - 1);
    size_t bare = strlen("[\"bench:say\",{\"call_id\":\"\",\"m\":\"\",\"p\":\"\"}]") + ROOM_LEN + TOKEN_LEN;
    int pad = o.payload > bare ? (int)(o.payload - bare) : 0;
    int n = snprintf(line, sizeof line, "{\"id\":%u,", ++c->command);
    n += number < 0 ? snprintf(line + n, 200, "\"publish\":{\"channel\":\"%s\",", room)
                    : snprintf(line + n, 200, "\"rpc\":{\"method\":\"%s\",", event);
    n += snprintf(line + n, sizeof line - (size_t)n, "\"data\":{\"call_id\":\"%s\",\"m\":\"%s\",\"p\":\"%.*s\"}}}", room,
                  token, pad, padding);
    send_frame(c, 1, line, (size_t)n);
}

static void heard_reply(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    const uint8_t *end = p + n, *what = memchr(p, ',', n);
    size_t rest = what ? (size_t)(end - what) : 0;
    if (!what || starts(what, rest, ",\"publish\":")) return;
    if (starts(what, rest, ",\"rpc\":")) heard_ack(c, find_token(p, n), now);
    else if (starts(what, rest, ",\"connect\":") && c->state == ENTERING) {
        c->state = JOINING;
        if (c->publisher) heard_joined(c);
    } else if (starts(what, rest, ",\"subscribe\":") && c->state == JOINING) heard_joined(c);
    else {
        if (count.refused++ < 3) fprintf(stderr, "loadgen: reply: %.*s\n", (int)(n < 200 ? n : 200), p);
        if (c->state != READY) conn_dead(c, "a command was refused");
    }
}

static void heard_object(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    const uint8_t *token;
    if (n == 2) { /* {}: a ping */
        count.pings++;
        send_frame(c, 1, "{}", 2);
    } else if (starts(p, n, "{\"id\":")) heard_reply(c, p, n, now);
    else if (starts(p, n, "{\"push\":") && (token = find_token(p, n))) heard_token(c, token, now);
    else count.other++;
}

static void text(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    while (n && c->state != DEAD) {
        const uint8_t *e = memchr(p, '\n', n);
        size_t k = e ? (size_t)(e - p) : n;
        if (k) heard_object(c, p, k, now);
        if (!e) return;
        p += k + 1, n -= k + 1;
    }
}

static void binary(struct conn *c, const uint8_t *p, size_t n, uint64_t now) {
    (void)c, (void)p, (void)n, (void)now;
    count.foreign++;
}

static void opaque(struct conn *c, size_t n) {
    (void)n;
    conn_dead(c, "a compressed frame");
}

const struct protocol centrifugo = {"/connection/websocket", opened, text, binary, opaque, say};
