/* A guest that exercises the vsock device: one small server a port. PID 1, static. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <linux/vm_sockets.h>

enum { ECHO = 2001, SOURCE, DIGEST, FLOOD, LAST_ERRNO, HALF, PORTS };
static volatile int *last_errno;
static char buffer[65536];

static void all(int fd, const void *p, size_t n) {
    const char *c = p;
    while (n) {
        ssize_t w = write(fd, c, n);
        if (w < 0) _exit(1);
        c += w, n -= w;
    }
}
static unsigned char pattern(uint64_t at) { return (at * 31 + (at >> 12)) % 251; }

static void serve(int port, int fd) {
    ssize_t n;
    switch (port) {
    case ECHO: /* until end of file */
        while ((n = read(fd, buffer, sizeof buffer)) > 0) all(fd, buffer, n);
        break;
    case SOURCE: { /* as many bytes as asked for, then closes */
        uint64_t want, at = 0;
        if (read(fd, &want, 8) != 8) break;
        while (at < want) {
            size_t k = want - at < sizeof buffer ? want - at : sizeof buffer;
            for (size_t i = 0; i < k; i++) buffer[i] = pattern(at + i);
            all(fd, buffer, k);
            at += k;
        }
        break;
    }
    case DIGEST: { /* counts what is right until end of file, then answers */
        uint64_t good = 0, at = 0;
        while ((n = read(fd, buffer, sizeof buffer)) > 0)
            for (ssize_t i = 0; i < n; i++, at++) good += (unsigned char)buffer[i] == pattern(at);
        uint64_t answer[2] = { at, good };
        all(fd, answer, 16);
        break;
    }
    case FLOOD: /* until it fails */
        while (write(fd, buffer, 4096) > 0);
        *last_errno = errno;
        break;
    case LAST_ERRNO: {
        int e = *last_errno;
        all(fd, &e, 4);
        break;
    }
    case HALF: /* ends its output first, then counts the input, tells by the last errno */
        all(fd, "bye", 3);
        shutdown(fd, SHUT_WR);
        for (*last_errno = 0; (n = read(fd, buffer, sizeof buffer)) > 0;) *last_errno += n;
        break;
    }
    close(fd);
}

int main(void) {
    struct pollfd fds[PORTS - ECHO];
    signal(SIGPIPE, SIG_IGN);
    last_errno = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int port = ECHO; port < PORTS; port++) {
        struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
        int s = socket(AF_VSOCK, SOCK_STREAM, 0);
        if (s < 0 || bind(s, (void *)&a, sizeof a) || listen(s, 64)) return 2;
        fds[port - ECHO] = (struct pollfd){ .fd = s, .events = POLLIN };
    }
    struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = 1024 };
    int s = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (connect(s, (void *)&host, sizeof host) == 0 || errno != ECONNRESET) return 3;
    close(s);
    for (;;) {
        while (waitpid(-1, 0, WNOHANG) > 0);
        if (poll(fds, PORTS - ECHO, 1000) <= 0) continue;
        for (int i = 0; i < PORTS - ECHO; i++) {
            if (!(fds[i].revents & POLLIN)) continue;
            int c = accept(fds[i].fd, 0, 0);
            if (c < 0) continue;
            if (fork() == 0) { serve(ECHO + i, c); _exit(0); }
            close(c);
        }
    }
}
