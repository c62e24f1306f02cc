/*
 * The smallest honest WASI command: two calls and no C library, a few hundred bytes,
 * so that a test that only wants "a program ran" spends no time on compiling it.
 */
#include <stddef.h>
#include <stdint.h>

struct ciovec {
	const char *data;
	size_t length;
};

__attribute__((import_module("wasi_snapshot_preview1"), import_name("fd_write")))
int32_t fd_write(int32_t fd, const struct ciovec *vectors, size_t count, size_t *written);

void _start(void)
{
	static const char text[] = "tiny\n";
	const struct ciovec line = { text, sizeof text - 1 };
	size_t written;
	if (fd_write(1, &line, 1, &written) != 0)
		__builtin_trap();
}
