/*
 * A multi-call program: what its parts share. One process is all there is: WASI knows no exec, fork,
 * pipe or dup, so the shell calls applets as functions, and standard streams are objects of ours.
 */
#ifndef BUSYBOX_H
#define BUSYBOX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BUFFER_BYTES 8192
/* What one side of a pipeline or a command substitution may hold. */
#define MEMORY_BYTES_MAX (16u << 20)

/* A standard stream: a descriptor, or memory when fd is -1. */
struct stream {
	int fd;
	char *data; /* output that waits to be written, or the memory */
	size_t length, capacity;
	size_t position; /* of the reader */
	int failed;      /* nothing more can be written */
};

/* Standard input, output and error of what runs now. */
extern struct stream *standard[3];

/* stream.c */
struct stream stream_of(int fd);
void stream_free(struct stream *stream);
void put(struct stream *stream, const void *bytes, size_t length);
/* Writes what is buffered; -1 when the stream has failed. */
int flush(struct stream *stream);
/* Reads standard input: the count, 0 at its end, -1 with errno. */
ssize_t take(void *into, size_t length);
void say(const char *text);
void say_number(uint64_t value);
void say_padded(uint64_t value, int width, char with);
/* Says "applet: what: why" on standard error and returns 1; either may be NULL. */
int complain(const char *what, const char *why);
/* The same with the reason of errno. */
int failed(const char *what);
/* Says "usage: ..." and returns 2. */
int misused(const char *usage);

/* memory.c: memory that goes back at once, in the order of a stack. */
struct mark {
	void *chunk;
	size_t used;
};
struct mark arena_mark(void);
void arena_release(struct mark mark);
void *arena(size_t bytes);
char *arena_copy(const char *text, size_t length);
/* malloc and friends that end the program when there is no memory. */
void *must(void *memory);
char *joined(const char *folder, const char *name);

/* Text that grows in the arena; `text` is always terminated. */
struct text {
	char *text;
	size_t length, capacity;
};
void text_add(struct text *text, const char *bytes, size_t length);

/* variable.c: the environment, and the shell's variables. */
struct variable {
	char *name, *value;
	int exported;
};
struct variables {
	struct variable *list;
	size_t count;
};
extern struct variables variables;
void variables_from(char **environment);
struct variables variables_copy(void);
void variables_replace(struct variables with);
const char *variable(const char *name);
void variable_set(const char *name, const char *value, int exported);
void variable_unset(const char *name);
/* The length of the name that `text` starts with, 0 for none. */
size_t name_length(const char *text);

/* options.c: value['x'] is what option x was given, "" for a flag, NULL when absent. */
struct options {
	const char *value[128];
};
/* The index of the first operand; -1 after a complaint. A letter with ':' behind it takes a value. */
int options(char **argv, const char *letters, struct options *given);
/* A decimal number, or -1 after a complaint. */
int64_t number(const char *text);

/* applets.c */
typedef int applet_main(int argc, char **argv);
struct applet {
	const char *name;
	applet_main *run;
};
extern const struct applet applets[];
const struct applet *applet_named(const char *name);
/* Runs one to its end, with its output flushed; the result is the exit status. */
int applet_run(const struct applet *applet, int argc, char **argv);

/* The applets, by the file that they are in. */
applet_main busybox_main; /* applets.c */
applet_main cat_main, grep_main, head_main, wc_main;                                          /* text.c */
applet_main echo_main, printf_main, seq_main, yes_main;                                       /* print.c */
applet_main mkdir_main, rm_main, sync_main, touch_main;                                       /* files.c */
applet_main date_main, ls_main, stat_main;                                                    /* listing.c */
applet_main env_main, false_main, hostname_main, id_main, pgrep_main, sleep_main, top_main;   /* process.c */
applet_main true_main, tty_main;
applet_main test_main;                                                                        /* test.c */
applet_main sh_main;                                                                          /* sh.c */

#endif
