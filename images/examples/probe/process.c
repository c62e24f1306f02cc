/* Subcommands about the process itself: exit, time, memory, traps, arguments, environment. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "probe.h"

#define RANDOM_BYTES_MAX 256 /* what getentropy() gives at once */

extern char **environ;

int run_exit(char **arguments)
{
	exit(atoi(arguments[0]));
}

int run_loop(char **arguments)
{
	(void)arguments;
	say(1, "looping\n");
	for (volatile uint64_t turns = 0;; turns++)
		;
}

int run_sleep(char **arguments)
{
	uint64_t ms = strtoull(arguments[0], NULL, 10);
	struct timespec wait = { .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 };
	say(1, "sleeping\n");
	if (nanosleep(&wait, NULL) < 0)
		return failed("nanosleep");
	say(1, "awake\n");
	return 0;
}

/* Grows the memory and touches each page, until `limit` MiB or the first refusal. */
static uint64_t grow(uint64_t limit_mib)
{
	uint64_t mib = 0;
	while (mib < limit_mib) {
		size_t before = __builtin_wasm_memory_grow(0, 16);
		if (before == SIZE_MAX)
			break;
		for (size_t page = 0; page < 256; page++)
			((volatile char *)(before * 65536))[page * 4096] = 1;
		mib++;
	}
	return mib;
}

int run_alloc(char **arguments)
{
	uint64_t wanted = strtoull(arguments[0], NULL, 10);
	uint64_t got = grow(wanted);
	say(1, "allocated ");
	say_number(1, got);
	say(1, got == wanted ? " MiB\n" : " MiB, then memory.grow failed\n");
	return got == wanted ? 0 : 1;
}

int run_hold(char **arguments)
{
	char dropped[256];
	uint64_t wanted = strtoull(arguments[0], NULL, 10);
	if (grow(wanted) != wanted) {
		say(1, "memory.grow failed\n");
		return 1;
	}
	say(1, "holding\n");
	while (read(0, dropped, sizeof dropped) > 0)
		;
	return 0;
}

int run_exhaust(char **arguments)
{
	(void)arguments;
	uint64_t got = grow(1 << 16);
	say(1, "memory.grow failed after ");
	say_number(1, got);
	say(1, " MiB\n");
	return 0;
}

static volatile int zero;
static volatile int deep;

__attribute__((noinline)) static int inner_unreachable(void)
{
	__builtin_trap();
}

__attribute__((noinline)) static int inner_divide(void)
{
	return 100 / zero;
}

__attribute__((noinline)) static int inner_bounds(void)
{
	return *(volatile int *)(uintptr_t)0xfffffff0u;
}

__attribute__((noinline)) static int inner_recursion(int depth)
{
	volatile char frame[256];
	frame[depth & 255] = (char)depth;
	if (deep < 0)
		return 0;
	return inner_recursion(depth + 1) + frame[depth & 255];
}

__attribute__((noinline)) static int middle(const char *kind)
{
	int result = deep;
	if (strcmp(kind, "unreachable") == 0)
		result += inner_unreachable();
	else if (strcmp(kind, "divide") == 0)
		result += inner_divide();
	else if (strcmp(kind, "bounds") == 0)
		result += inner_bounds();
	else if (strcmp(kind, "recursion") == 0)
		result += inner_recursion(0);
	deep = result;
	return result;
}

__attribute__((noinline)) static int outer(const char *kind)
{
	deep = middle(kind) + 1;
	return deep;
}

int run_trap(char **arguments)
{
	say(2, "about to trap\n");
	outer(arguments[0]);
	say(2, "probe: trap did not happen\n");
	return 2;
}

int run_clock(char **arguments)
{
	struct timespec wall, first, second;
	(void)arguments;
	if (clock_gettime(CLOCK_REALTIME, &wall) < 0 || clock_gettime(CLOCK_MONOTONIC, &first) < 0)
		return failed("clock_gettime");
	do
		clock_gettime(CLOCK_MONOTONIC, &second);
	while (second.tv_sec == first.tv_sec && second.tv_nsec == first.tv_nsec);
	say(1, "wall ");
	say_number(1, (uint64_t)wall.tv_sec);
	say(1, second.tv_sec > first.tv_sec || second.tv_nsec > first.tv_nsec ? "\nmonotonic forward\n"
									     : "\nmonotonic backward\n");
	return 0;
}

int run_clocks(char **arguments)
{
	static const struct timespec pause = { 0, 100 * 1000 * 1000 };
	struct timespec wall, monotonic;
	(void)arguments;
	for (;;) {
		if (clock_gettime(CLOCK_REALTIME, &wall) < 0 || clock_gettime(CLOCK_MONOTONIC, &monotonic) < 0)
			return failed("clock_gettime");
		say_number(1, (uint64_t)wall.tv_sec);
		say(1, " ");
		say_number(1, (uint64_t)monotonic.tv_sec * 1000 + (uint64_t)monotonic.tv_nsec / 1000000);
		say(1, "\n");
		nanosleep(&pause, NULL);
	}
}

int run_random(char **arguments)
{
	unsigned char block[RANDOM_BYTES_MAX];
	size_t length = strtoul(arguments[0], NULL, 10);
	if (length > sizeof block || getentropy(block, length) < 0)
		return failed("getentropy");
	say_hex(1, block, length);
	return 0;
}

int run_args(char **arguments)
{
	for (char **at = arguments; *at != NULL; at++) {
		say(1, *at);
		say(1, "\n");
	}
	return 0;
}

int run_env(char **arguments)
{
	return run_args(arguments[0] == NULL ? environ : arguments);
}

int run_pwd(char **arguments)
{
	const char *pwd = getenv("PWD");
	char where[PATH_BYTES_MAX];
	(void)arguments;
	if (getcwd(where, sizeof where) == NULL)
		return failed("getcwd");
	say(1, "PWD=");
	say(1, pwd == NULL ? "" : pwd);
	say(1, "\ngetcwd=");
	say(1, where);
	say(1, "\n");
	return 0;
}
