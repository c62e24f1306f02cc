/* A guest that tells its time: one connection after the other, one byte a question. PID 1, static. */
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>

enum { PORT = 2010, READY_PORT = 1024 };

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(void) {
    struct sockaddr_vm a = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = PORT };
    int s = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (s < 0 || bind(s, (void *)&a, sizeof a) || listen(s, 4)) return 2;
    struct sockaddr_vm ready = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = READY_PORT };
    connect(socket(AF_VSOCK, SOCK_STREAM, 0), (void *)&ready, sizeof ready);
    for (;;) {
        int fd = accept(s, 0, 0);
        char question;
        while (read(fd, &question, 1) == 1) {
            uint64_t answer = now();
            if (question == 's') { /* sleeps 5 s; how long was that? */
                struct timespec t = { 5, 0 };
                nanosleep(&t, 0);
                answer = now() - answer;
            } else if (question == 'b' && !fork()) {
                for (;;); /* keeps the vCPU busy from now on */
            }
            if (write(fd, &answer, 8) != 8) break;
        }
        close(fd);
    }
}
