/* SHA-256 (FIPS 180-4), plain and small: what `probe sha256` needs and no more. */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
	uint32_t words[8];
	uint64_t length_bytes;
	unsigned char pending[64];
};

void sha256_start(struct sha256 *state);
void sha256_add(struct sha256 *state, const unsigned char *data, size_t length);
void sha256_end(struct sha256 *state, unsigned char digest[32]);

#endif
