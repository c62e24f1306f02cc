/*
 * What only a component can ask: wasi:cli/environment's initial-cwd, which is where the
 * container's process.cwd arrives (wasi-libc of preview 1 always starts in "/").
 */
#include <stdint.h>
#include <stdlib.h>

#include "../probe/probe.h"

/* option<string> in the canonical ABI. */
struct optional_string {
	uint8_t present;
	const char *text;
	size_t length;
};

__attribute__((import_module("wasi:cli/environment@0.2.12"), import_name("initial-cwd")))
void initial_cwd(struct optional_string *result);

/* The host allocates the string's bytes with this. */
__attribute__((export_name("cabi_realloc")))
void *cabi_realloc(void *old, size_t old_length, size_t alignment, size_t length)
{
	(void)old_length;
	(void)alignment;
	return realloc(old, length);
}

int run_cwd(char **arguments)
{
	struct optional_string cwd;
	(void)arguments;
	initial_cwd(&cwd);
	if (!cwd.present)
		say(1, "none");
	else if (write_all(1, cwd.text, cwd.length) < 0)
		return failed("stdout");
	say(1, "\n");
	return 0;
}
