/* loadgen: a load client for Socket.IO servers that is not the bottleneck. One thread, epoll, no dependencies.
 *
 * It opens N connections, lets each enter with a token and join a room, does one kind of work for a while, and prints one
 * line of JSON. Exit status 1: something was lost, doubled, overtaken or refused; 2: the run itself failed. */
#include "load.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options o = {.label = "", .say = "bench:say", .ports = {5001}, .nports = 1, .n = 100, .rooms = 1, .at_once = 64,
                    .payload = 150, .window = 1, .dur_s = 3, .warm_s = 1, .drain_s = 5, .spin = true, .size = 65536};

static const char *MODES[] = {"connect", "idle", "fanout", "rooms", "ack", "relay", "upload", "drop"};
#define NMODES (sizeof MODES / sizeof *MODES)

static const char USAGE[] =
    "usage: loadgen MODE [options]\n"
    "  connect   how fast N connections come in, --at-once at a time\n"
    "  idle      what N connections that do nothing cost, for --hold seconds\n"
    "  fanout    one publisher outside speaks in R rooms of N/R members, in turn\n"
    "  rooms     random members speak in their own rooms\n"
    "  ack       every connection has --window commands outstanding\n"
    "  relay     a publisher's binary messages of --size bytes go to the room's members\n"
    "  upload    binary messages of --size bytes are acknowledged\n"
    "  drop      N connections end at once: how long that stalls the server\n"
    "options: --port P[,P] --pub-port P --pids P[,P] --n N --rooms R --window W --rate PER_S (0: closed loop)\n"
    "  --payload BYTES --size BYTES --say EVENT --tokens FILE --stalled N --at-once N --warm S --dur S --drain S\n"
    "  --hold S --label TEXT --browser --deflate --no-spin --centrifugo\n";

static void usage(void) {
    fputs(USAGE, stderr);
    exit(2);
}

static void read_tokens(const char *file) {
    FILE *f = fopen(file, "r");
    static char line[9000];
    if (!f) die("%s: %s", file, strerror(errno));
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\r\n")] = 0;
        o.tokens = grow(o.tokens, (o.ntokens + 1) * sizeof *o.tokens);
        o.tokens[o.ntokens++] = strdup(line);
    }
    fclose(f);
    if (!o.ntokens) die("no tokens in %s", file);
}

static int numbers(char *list, int *to, int most) {
    int n = 0;
    for (char *s = strtok(list, ","); s && n < most; s = strtok(NULL, ",")) to[n++] = atoi(s);
    return n;
}

static void read_options(int argc, char **argv) {
    static const struct option LONG[] = {
        {"port", 1, 0, 'p'}, {"pub-port", 1, 0, 'P'}, {"pids", 1, 0, 'i'}, {"n", 1, 0, 'n'}, {"rooms", 1, 0, 'r'},
        {"window", 1, 0, 'w'}, {"rate", 1, 0, 'R'}, {"payload", 1, 0, 'y'}, {"size", 1, 0, 'z'}, {"say", 1, 0, 'e'},
        {"tokens", 1, 0, 't'}, {"stalled", 1, 0, 's'}, {"at-once", 1, 0, 'c'}, {"warm", 1, 0, 'W'}, {"dur", 1, 0, 'd'},
        {"drain", 1, 0, 'D'}, {"hold", 1, 0, 'h'}, {"label", 1, 0, 'l'}, {"browser", 0, 0, 'b'}, {"deflate", 0, 0, 'f'},
        {"no-spin", 0, 0, 'S'}, {"centrifugo", 0, 0, 'C'}, {0}};
    if (argc < 2) usage();
    unsigned mode = 0;
    while (mode < NMODES && strcmp(argv[1], MODES[mode])) mode++;
    if (mode == NMODES) usage();
    o.mode = (enum mode)mode;
    optind = 2;
    for (int ch; (ch = getopt_long(argc, argv, "", LONG, NULL)) != -1;) {
        switch (ch) {
        case 'p': o.nports = numbers(optarg, o.ports, 7); break;
        case 'P': o.pub_port = atoi(optarg); break;
        case 'i': o.npids = numbers(optarg, o.pids, 16); break;
        case 'n': o.n = (unsigned)atoi(optarg); break;
        case 'r': o.rooms = (unsigned)atoi(optarg); break;
        case 'w': o.window = (unsigned)atoi(optarg); break;
        case 'R': o.rate = atof(optarg); break;
        case 'y': o.payload = (unsigned)atoi(optarg); break;
        case 'z': o.size = (size_t)atol(optarg); break;
        case 'e': o.say = optarg; break;
        case 't': read_tokens(optarg); break;
        case 's': o.stalled = (unsigned)atoi(optarg); break;
        case 'c': o.at_once = (unsigned)atoi(optarg); break;
        case 'W': o.warm_s = atof(optarg); break;
        case 'd': o.dur_s = atof(optarg); break;
        case 'D': o.drain_s = atof(optarg); break;
        case 'h': o.hold_s = atof(optarg); break;
        case 'l': o.label = optarg; break;
        case 'b': o.browser = true; break;
        case 'f': o.deflate = true; break;
        case 'S': o.spin = false; break;
        case 'C': o.centrifugo = true; break;
        default: usage();
        }
    }
    if (!o.n || !o.rooms || !o.nports || o.payload > 60000 || !o.size) usage();
    bool spoken = o.mode == CONNECT || o.mode == IDLE || o.mode == FANOUT || o.mode == ROOMS || o.mode == ACK;
    if (o.centrifugo && !spoken) die("%s is not done with --centrifugo", MODES[o.mode]);
    if (o.centrifugo) protocol = &centrifugo;
}

/* -------------------------------------------------------------- the run */

static double seconds_since(uint64_t from) { return (double)(now_ns() - from) / 1e9; }

/* How long until all were there, or had failed. */
static double open_all(void) {
    uint64_t from = now_ns(), last = from;
    unsigned next = 0, ready = 0;
    while (nready + ndead < nconns) {
        while (next < nconns && nopening < o.at_once) open_connection(&conns[next++]);
        poll_once(o.spin ? 0 : 1000000);
        if (nready != ready) ready = nready, last = now_ns();
        else if (seconds_since(last) > 20) die("nobody came in for 20 s: %u of %u are in, %u failed", nready, nconns, ndead);
    }
    return seconds_since(from);
}

static bool speaks(void) { return o.mode == FANOUT || o.mode == ROOMS || o.mode == RELAY; }

/* Open loop: messages leave at their intended times, and latency counts from those, however late the loop is. */
static void send_due(uint64_t now) {
    static uint64_t next;
    double gap_ns = 1e9 / o.rate;
    if (!next) next = now;
    for (int burst = 0; next <= now && burst < 4096; burst++) {
        if (o.mode == ACK) ask_next(&conns[draw() % o.n], next);
        else say_next(next);
        next += (uint64_t)(o.mode == FANOUT ? gap_ns : -log(1 - draw01()) * gap_ns);
    }
}

static void run_for(double seconds, bool sending) {
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9), now, last_frames = count.frames, last = now_ns();
    while ((now = now_ns()) < end) {
        if (!nready) die("all connections are gone");
        if (sending && o.rate > 0) send_due(now);
        poll_once(o.spin ? 0 : 200000);
        if (count.frames != last_frames) last_frames = count.frames, last = now;
        else if (sending && speaks() && in_flight && now > last && now - last > 5000000000ull) {
            fprintf(stderr, "loadgen: nothing heard for 5 s, %u messages in flight\n", in_flight);
            count.errors++;
            return;
        }
    }
}

static unsigned outstanding(void) {
    unsigned total = 0;
    for (unsigned i = 0; i < o.n; i++) total += conns[i].outstanding;
    return total;
}

/* What is still under way may arrive; what does not is lost. */
static void drain(void) {
    uint64_t from = now_ns();
    stopping = true;
    while (seconds_since(from) < o.drain_s && (speaks() ? delivered_total < expected_total : outstanding() > 0)) poll_once(1000000);
}

static double ask_stall(void) {
    socketio_ask_stall(publisher);
    while (stall_ms < 0 && publisher->state == READY) poll_once(1000000);
    return stall_ms;
}

struct result {
    double seconds, cpu, busy, stall_ms, settled_s;
    uint64_t published, bytes, frames;
};

static struct result work(void) {
    struct result r = {0};
    measured_from = UINT64_MAX;
    send_window();
    run_for(o.warm_s, true);
    uint64_t from = measured_from = now_ns();
    measuring = true;
    double cpu = cpu_s();
    uint64_t idle = idle_ns, published = count.published, bytes = count.bytes, frames = count.frames;
    run_for(o.dur_s, true);
    measuring = false;
    r.seconds = seconds_since(from);
    r.cpu = cpu_s() - cpu;
    r.busy = 1 - (double)(idle_ns - idle) / 1e9 / r.seconds;
    r.published = count.published - published, r.bytes = count.bytes - bytes, r.frames = count.frames - frames;
    drain();
    return r;
}

static struct result stay_idle(void) {
    struct result r = {0};
    uint64_t from = now_ns();
    double cpu = cpu_s();
    run_for(o.hold_s, false);
    r.seconds = seconds_since(from);
    r.cpu = cpu_s() - cpu;
    return r;
}

/* All but one hang up. Settled: the server has answered, and its core is quiet again. */
static struct result drop(void) {
    struct result r = {0};
    ask_stall();
    double cpu = cpu_s(), before, used;
    uint64_t from = now_ns(), mark;
    for (unsigned i = 0; i < o.n; i++) conn_dead(&conns[i], NULL);
    ndead = 0;
    do {
        r.stall_ms = fmax(r.stall_ms, ask_stall());
        before = cpu_s(), mark = now_ns();
        while (seconds_since(mark) < 0.5) poll_once(1000000);
        used = cpu_s() - before;
    } while (used > 0.05 && seconds_since(from) < 30);
    r.stall_ms = fmax(r.stall_ms, ask_stall());
    r.settled_s = seconds_since(from) - 0.5;
    r.cpu = cpu_s() - cpu;
    return r;
}

/* ----------------------------------------------------------- the answer */

static void print_connects(double opened_s, double cpu, long before_kb, long after_kb) {
    printf(",\"connects_per_s\":%.0f,\"connect_cpu_us\":%.1f,\"connect_p50_ms\":%.2f,\"connect_p99_ms\":%.2f",
           nconns / opened_s, cpu / nconns * 1e6, histogram_us(connecting, 50) / 1e3, histogram_us(connecting, 99) / 1e3);
    printf(",\"rss_before_kb\":%ld,\"rss_kb\":%ld,\"rss_per_connection_kb\":%.2f,\"rss_end_kb\":%ld,\"rss_peak_kb\":%ld",
           before_kb, after_kb, (double)(after_kb - before_kb) / nconns, memory_kb("VmRSS"), memory_kb("VmHWM"));
}

static void print_work(const struct result *r) {
    uint64_t ops = speaks() ? count.deliveries : count.acks;
    printf(",\"seconds\":%.3f,\"published_per_s\":%.1f,\"ops\":%" PRIu64 ",\"ops_per_s\":%.0f,\"server_cpu\":%.3f", r->seconds,
           (double)r->published / r->seconds, ops, (double)ops / r->seconds, r->cpu / r->seconds);
    printf(",\"cpu_us_per_op\":%.3f,\"client_busy\":%.3f,\"ops_per_frame\":%.2f,\"bytes_per_op\":%.1f,\"mb_per_s\":%.1f",
           ops ? r->cpu / (double)ops * 1e6 : 0, r->busy, r->frames ? (double)ops / (double)r->frames : 0,
           ops ? (double)r->bytes / (double)ops : 0, (double)count.payload / r->seconds / 1e6);
    printf(",\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"p999_ms\":%.3f,\"max_ms\":%.3f,\"latencies\":%" PRIu64,
           histogram_us(latency, 50) / 1e3, histogram_us(latency, 99) / 1e3, histogram_us(latency, 99.9) / 1e3,
           histogram_us(latency, 100) / 1e3, histogram_count(latency));
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    stop_at_ns = now_ns() + (uint64_t)((o.warm_s + o.dur_s + o.drain_s + o.hold_s + 120) * 1e9);
    connections_start();
    work_start();

    long before_kb = memory_kb("VmRSS");
    double cpu = cpu_s(), opened_s = open_all(), opening_cpu = cpu_s() - cpu;
    unsigned failed = ndead;
    run_for(o.mode == CONNECT || o.mode == IDLE ? 1.0 : 0.3, false); /* let it settle */
    long after_kb = memory_kb("VmRSS");

    struct result r = {0};
    if (o.mode == IDLE) r = stay_idle(), after_kb = memory_kb("VmRSS");
    else if (o.mode == DROP) r = drop();
    else if (o.mode != CONNECT) r = work();

    printf("{\"label\":\"%s\",\"mode\":\"%s\",\"n\":%u,\"rooms\":%u,\"window\":%u,\"rate\":%g,\"payload\":%u", o.label,
           MODES[o.mode], o.n, o.rooms, o.window, o.rate, o.payload);
    print_connects(opened_s, opening_cpu, before_kb, after_kb);
    if (o.mode == IDLE) printf(",\"seconds\":%.3f,\"server_cpu\":%.4f", r.seconds, r.cpu / r.seconds);
    else if (o.mode == DROP)
        printf(",\"stall_ms\":%.2f,\"settled_s\":%.2f,\"drop_cpu_s\":%.3f", r.stall_ms, r.settled_s, r.cpu);
    else if (o.mode != CONNECT) print_work(&r);
    if (o.stalled) {
        unsigned kept = 0;
        for (unsigned i = o.n; i < o.n + o.stalled; i++) kept += conn_kept(&conns[i]);
        printf(",\"stalled_kept\":%u", kept);
    }
    uint64_t lost = speaks() ? expected_total - delivered_total : o.mode == ACK || o.mode == UPLOAD ? outstanding() : 0;
    uint64_t wrong = lost + count.duplicated + count.reordered + count.foreign + count.refused + count.errors + failed;
    printf(",\"lost\":%" PRIu64 ",\"duplicated\":%" PRIu64 ",\"reordered\":%" PRIu64 ",\"foreign\":%" PRIu64
           ",\"refused\":%" PRIu64 ",\"failed\":%u,\"errors\":%" PRIu64 ",\"other\":%" PRIu64 "}\n",
           lost, count.duplicated, count.reordered, count.foreign, count.refused, failed, count.errors, count.other);
    return wrong ? 1 : 0;
}
