/*
 * The shell. One process: applets are called, the sides of a pipeline run one after the other, and a
 * subshell is the same shell with its variables and its directory put back afterwards.
 *
 *   parse.c   text -> tree       expand.c   word -> fields       run.c   tree -> status
 */
#ifndef SH_H
#define SH_H

#include "busybox.h"

#define STATUS_SYNTAX 2
#define STATUS_NOT_RUNNABLE 126
#define STATUS_NOT_FOUND 127
/* The stack is 64 KiB, and nothing tells when it is full. */
#define DEPTH_MAX 32 /* of commands in commands, and of shells in shells */

enum kind { SIMPLE, SEQUENCE, AND, OR, NOT, PIPE, IF, WHILE, UNTIL, FOR, GROUP, SUBSHELL };

struct words {
	const char *text; /* as written, with its quotes */
	struct words *next;
};

enum direction { READ, WRITE, APPEND, SAME_AS };

struct redirect {
	int fd;
	enum direction direction;
	const char *word;
	struct redirect *next;
};

struct node {
	enum kind kind;
	struct node *left, *right, *otherwise; /* condition, body, else; or both sides */
	const char *name;                      /* the variable of a for */
	struct words *words;
	struct redirect *redirects;
};

/* parse.c */
enum parsed { PARSED, PARSED_END, PARSED_INCOMPLETE, PARSED_BAD };
/*
 * Parses one complete command line of *text into *tree (NULL for an empty one) and moves *text behind it;
 * *word is where a bad one goes wrong.
 */
enum parsed parse(const char **text, struct node **tree, const char **word);
/* What lies behind the $(...), ${...} or `...` that starts here; NULL when it does not end. */
const char *behind_substitution(const char *at);

/* expand.c: fields in the arena. */
struct words *expand(const struct words *words);
/* One word without splitting or file names. */
const char *expand_one(const char *word);

/* run.c */
enum leaving { STAY, EXIT, BREAK, CONTINUE };
struct shell {
	int status;
	int substituted; /* status of the last $() of the command at hand */
	enum leaving leaving;
	int loops, depth;
	int exits_on_failure; /* -e */
	int tested;           /* inside of what is asked for its status */
	char **arguments; /* $0, $1, ... */
};
extern struct shell shell;
int run(const struct node *tree);
/* Runs a builtin or an applet by its name or path. */
int call(int argc, char **argv);
/* Runs a whole text; the result is the exit status. */
int run_text(const char *text);
/* Runs `body` as a process of its own would: nothing but files stays changed. */
int in_subshell(int (*body)(const void *), const void *data);

/* builtins.c: those that need the shell; NULL for any other name. */
applet_main *builtin_named(const char *name);
/* One line of standard input with its end, in the arena; NULL at the end of the input. */
char *read_line(void);

#endif
