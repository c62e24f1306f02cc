/*
 * probe: one program with a subcommand for everything the end-to-end tests ask of a
 * module. It is one module so that a test run compiles it once, and it prints without
 * printf so that it stays small. `probe help` lists the subcommands.
 *
 * Exit status: 0, or 1 with a sentence on stderr when a call failed, or 2 for a wrong
 * command line, or what the subcommand says.
 */
#include <string.h>

#include "probe.h"

static int run_each(char **arguments);

static const struct command {
	const char *name, *usage;
	int arguments_min;
	int (*run)(char **arguments);
} commands[] = {
	{ "alloc", "MIB: grow the memory by MIB and touch it; status 1 when refused", 1, run_alloc },
	{ "append", "FILE TEXT", 2, run_append },
	{ "args", "[ARG...]: print each on a line", 0, run_args },
	{ "cat", "copy stdin to stdout", 0, run_cat },
	{ "clock", "print the wall clock in seconds, and whether time passes", 0, run_clock },
	{ "clocks", "print wall clock (s) and monotonic clock (ms) ten times a second, without end", 0, run_clocks },
#ifdef PROBE_COMPONENT
	{ "cwd", "print wasi:cli's initial-cwd, or 'none'", 0, run_cwd },
#endif
	{ "each", "COMMAND... [, COMMAND...]: run one after the other; status 1 when one has failed", 1, run_each },
	{ "echo", "print 'ready', then 'got ' and each line of stdin at once", 0, run_echo },
	{ "env", "print the environment", 0, run_env },
	{ "err", "TEXT: print a line on stderr", 1, run_err },
	{ "exhaust", "grow the memory until it is refused", 0, run_exhaust },
	{ "exit", "STATUS", 1, run_exit },
	{ "hold", "MIB: grow the memory by MIB, print 'holding', end when stdin does", 1, run_hold },
	{ "ln", "TARGET LINK: make a symbolic link", 2, run_ln },
	{ "loop", "print 'looping' and never end", 0, run_loop },
	{ "ls", "DIR: print the sorted names", 1, run_ls },
	{ "many", "DIR N: create, read back and remove N files", 2, run_many },
	{ "mkdir", "DIR", 1, run_mkdir },
	{ "mv", "FROM TO", 2, run_mv },
	{ "out", "TEXT: print a line on stdout", 1, run_out },
	{ "pwd", "print $PWD and getcwd()", 0, run_pwd },
	{ "random", "N: print N random bytes in hexadecimal, at most 256", 1, run_random },
	{ "read", "FILE: copy it to stdout", 1, run_read },
	{ "rm", "PATH: remove a file or an empty directory", 1, run_rm },
	{ "sha256", "print the digest of stdin", 0, run_sha256 },
	{ "sleep", "MS: print 'sleeping', wait, print 'awake'", 1, run_sleep },
	{ "spam", "MIB: write the pattern to stdout, three lines to stderr", 1, run_spam },
	{ "stat", "PATH: print type (f, d, l, ?), size of a file, and PATH", 1, run_stat },
	{ "swallow", "read stdin to its end; it must be a start of the pattern", 0, run_swallow },
	{ "trap", "unreachable|divide|bounds|recursion, three functions deep", 1, run_trap },
	{ "walk", "DIR N: look at every file below DIR, N times, and print how many there are", 2, run_walk },
	{ "write", "FILE TEXT", 2, run_write },
};

#define COMMANDS (sizeof commands / sizeof commands[0])

static int help(int fd)
{
	for (size_t i = 0; i < COMMANDS; i++) {
		say(fd, commands[i].name);
		say(fd, " ");
		say(fd, commands[i].usage);
		say(fd, "\n");
	}
	return fd == 1 ? 0 : 2;
}

/* Runs the command that the NULL-terminated arguments begin with; -1 when there is none such. */
static int run_one(int count, char **arguments)
{
	for (size_t i = 0; count > 0 && i < COMMANDS; i++)
		if (strcmp(arguments[0], commands[i].name) == 0 && count - 1 >= commands[i].arguments_min)
			return commands[i].run(arguments + 1);
	return -1;
}

static int run_each(char **arguments)
{
	int bad = 0;
	while (*arguments != NULL) {
		int count = 0;
		while (arguments[count] != NULL && strcmp(arguments[count], ",") != 0)
			count++;
		char **next = arguments + count + (arguments[count] != NULL);
		arguments[count] = NULL;
		if (run_one(count, arguments) != 0)
			bad = 1;
		arguments = next;
	}
	return bad;
}

#ifdef PROBE_COMPONENT
/*
 * Called by hand: else the linker has every export run the constructors, cabi_realloc too, and
 * a component may not make calls while it is being given a result.
 */
extern void __wasm_call_ctors(void);
#endif

int main(int argc, char **argv)
{
#ifdef PROBE_COMPONENT
	__wasm_call_ctors();
#endif
	if (argc < 2)
		return help(2);
	if (strcmp(argv[1], "help") == 0)
		return help(1);
	int status = run_one(argc - 1, argv + 1);
	return status < 0 ? help(2) : status;
}
