#include <stdio.h>

int main(int argc, char **argv)
{
	printf("Hello from %s", argc > 0 ? argv[0] : "nobody");
	for (int i = 1; i < argc; i++)
		printf("%s %s", i == 1 ? "," : "", argv[i]);
	puts("!");
	return 0;
}
