/* What the parts of probe share: output, and one function per subcommand. */
#ifndef PROBE_H
#define PROBE_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK_BYTES 65536
#define PATH_BYTES_MAX 4096

/* Writes everything, or returns -1 with errno set. */
int write_all(int fd, const void *data, size_t length);

/* Write text, a decimal number, bytes in hexadecimal and a newline; a failure ends the process with 1. */
void say(int fd, const char *text);
void say_number(int fd, uint64_t value);
void say_hex(int fd, const unsigned char *bytes, size_t length);

/* The number in decimal, in a buffer that the next call overwrites. */
const char *decimal(uint64_t value);

/* Says "probe: what: why" by errno on stderr and returns 1, the status of a failed subcommand. */
int failed(const char *what);

/* Copies a descriptor to another until its end (streams.c). */
int copy(int from, int to, const char *name);

/* The subcommands: the arguments after the name, NULL-terminated; the result is the exit status. */

/* process.c */
int run_exit(char **arguments);
int run_loop(char **arguments);
int run_sleep(char **arguments);
int run_alloc(char **arguments);
int run_exhaust(char **arguments);
int run_hold(char **arguments);
int run_trap(char **arguments);
int run_clock(char **arguments);
int run_clocks(char **arguments);
int run_random(char **arguments);
int run_args(char **arguments);
int run_env(char **arguments);
int run_pwd(char **arguments);

/* streams.c */
int run_spam(char **arguments);
int run_swallow(char **arguments);
int run_cat(char **arguments);
int run_sha256(char **arguments);
int run_echo(char **arguments);
int run_out(char **arguments);
int run_err(char **arguments);

/* files.c */
int run_write(char **arguments);
int run_append(char **arguments);
int run_read(char **arguments);
int run_stat(char **arguments);
int run_ls(char **arguments);
int run_mkdir(char **arguments);
int run_rm(char **arguments);
int run_mv(char **arguments);
int run_ln(char **arguments);
int run_many(char **arguments);
int run_walk(char **arguments);

#ifdef PROBE_COMPONENT
/* ../probe-component/cwd.c */
int run_cwd(char **arguments);
#endif

#endif
