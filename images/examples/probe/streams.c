/* Subcommands about stdin, stdout and stderr. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"
#include "sha256.h"

static unsigned char block[BLOCK_BYTES];

/* Block k of the pattern: k in 8 bytes little-endian, then byte j is (7j + j/256) mod 256. */
static void pattern_start(void)
{
	for (size_t j = 0; j < BLOCK_BYTES; j++)
		block[j] = (unsigned char)(7 * j + j / 256);
}

static void pattern_number(uint64_t k)
{
	for (int byte = 0; byte < 8; byte++)
		block[byte] = (unsigned char)(k >> (8 * byte));
}

int run_spam(char **arguments)
{
	uint64_t blocks = strtoull(arguments[0], NULL, 10) * (1048576 / BLOCK_BYTES);
	pattern_start();
	say(2, "spam: begin\n");
	for (uint64_t k = 0; k < blocks; k++) {
		pattern_number(k);
		if (write_all(1, block, BLOCK_BYTES) < 0)
			return failed("stdout");
		if (k == blocks / 2)
			say(2, "spam: half\n");
	}
	say(2, "spam: end\n");
	return 0;
}

/* Reads a whole block, or what is left of the input. */
static ssize_t read_block(int fd, unsigned char *into)
{
	size_t have = 0;
	while (have < BLOCK_BYTES) {
		ssize_t got = read(fd, into + have, BLOCK_BYTES - have);
		if (got < 0)
			return -1;
		if (got == 0)
			break;
		have += (size_t)got;
	}
	return (ssize_t)have;
}

int run_swallow(char **arguments)
{
	static unsigned char input[BLOCK_BYTES];
	uint64_t total = 0;
	ssize_t got;
	(void)arguments;
	pattern_start();
	for (uint64_t k = 0; (got = read_block(0, input)) > 0; k++) {
		pattern_number(k);
		if (memcmp(block, input, (size_t)got) != 0) {
			say(1, "input differs from the pattern in block ");
			say_number(1, k);
			say(1, "\n");
			return 1;
		}
		total += (uint64_t)got;
	}
	if (got < 0)
		return failed("stdin");
	say_number(1, total);
	say(1, " bytes of the pattern\n");
	return 0;
}

int copy(int from, int to, const char *name)
{
	ssize_t got;
	while ((got = read(from, block, BLOCK_BYTES)) > 0)
		if (write_all(to, block, (size_t)got) < 0)
			return failed("stdout");
	return got < 0 ? failed(name) : 0;
}

int run_cat(char **arguments)
{
	(void)arguments;
	return copy(0, 1, "stdin");
}

int run_sha256(char **arguments)
{
	struct sha256 state;
	unsigned char digest[32];
	ssize_t got;
	(void)arguments;
	sha256_start(&state);
	while ((got = read(0, block, BLOCK_BYTES)) > 0)
		sha256_add(&state, block, (size_t)got);
	if (got < 0)
		return failed("stdin");
	sha256_end(&state, digest);
	say_hex(1, digest, sizeof digest);
	return 0;
}

/* Answers each line of stdin at once, for a test that talks to a running task. */
int run_echo(char **arguments)
{
	ssize_t got;
	(void)arguments;
	say(1, "ready\n");
	while ((got = read(0, block, BLOCK_BYTES)) > 0) {
		say(1, "got ");
		if (write_all(1, block, (size_t)got) < 0)
			return failed("stdout");
	}
	if (got < 0)
		return failed("stdin");
	say(1, "end of input\n");
	return 0;
}

int run_out(char **arguments)
{
	say(1, arguments[0]);
	say(1, "\n");
	return 0;
}

int run_err(char **arguments)
{
	say(2, arguments[0]);
	say(2, "\n");
	return 0;
}
