/* Text to tree: a recursive descent over tokens. */
#include "sh.h"

#include <ctype.h>
#include <string.h>

enum token { END, NEWLINE, WORD, REDIRECT, AND_IF, OR_IF, BAR, SEMICOLON, OPEN, CLOSE, UNKNOWN };

struct parser {
	const char *at, *start; /* behind the token and at it */
	const char *wrong;      /* where the parse has failed */
	enum token token;
	const char *word; /* WORD */
	struct redirect redirect;
	enum parsed result;
	int depth;
};

static const char *behind_quotes(const char *at);

/* What lies behind the bracket that ends what began, quotes and further brackets inside considered. */
static const char *behind_bracket(const char *at, char open, char close)
{
	for (int depth = 1; *at != '\0';) {
		if (*at == '\\' && at[1] != '\0') {
			at += 2;
		} else if (*at == '\'' || *at == '"') {
			if ((at = behind_quotes(at)) == NULL)
				return NULL;
		} else {
			depth += (*at == open) - (*at == close);
			at++;
			if (depth == 0)
				return at;
		}
	}
	return NULL;
}

const char *behind_substitution(const char *at)
{
	if (*at == '`') {
		const char *end = strchr(at + 1, '`');
		return end == NULL ? NULL : end + 1;
	}
	return at[1] == '(' ? behind_bracket(at + 2, '(', ')') : behind_bracket(at + 2, '{', '}');
}

static int substitutes(const char *at)
{
	return *at == '`' || (*at == '$' && (at[1] == '(' || at[1] == '{'));
}

static const char *behind_quotes(const char *at)
{
	char quote = *at++;
	while (*at != quote) {
		if (*at == '\0')
			return NULL;
		if (quote == '"' && substitutes(at)) {
			if ((at = behind_substitution(at)) == NULL)
				return NULL;
		} else {
			at += quote == '"' && *at == '\\' && at[1] != '\0' ? 2 : 1;
		}
	}
	return at + 1;
}

/* The end of the word that starts here; NULL when it goes on behind this text. */
static const char *behind_word(const char *at)
{
	while (at != NULL && *at != '\0' && strchr(" \t\n;&|<>()", *at) == NULL) {
		if (*at == '\'' || *at == '"')
			at = behind_quotes(at);
		else if (substitutes(at))
			at = behind_substitution(at);
		else if (strcmp(at, "\\\n") == 0)
			return NULL;
		else if (*at == '\\')
			at += at[1] == '\0' ? 1 : 2;
		else
			at++;
	}
	return at;
}

static void skip_blanks(struct parser *parser)
{
	for (;;) {
		if (*parser->at == ' ' || *parser->at == '\t')
			parser->at++;
		else if (parser->at[0] == '\\' && parser->at[1] == '\n' && parser->at[2] != '\0')
			parser->at += 2;
		else
			break;
	}
	if (*parser->at == '#')
		parser->at += strcspn(parser->at, "\n");
}

static void next(struct parser *parser);

static void take_word(struct parser *parser)
{
	const char *end = behind_word(parser->at);
	if (end == NULL) {
		parser->result = PARSED_INCOMPLETE;
		parser->token = UNKNOWN;
		return;
	}
	parser->token = WORD;
	parser->word = arena_copy(parser->at, (size_t)(end - parser->at));
	parser->at = end;
}

/* [0-2] then < > >> or >&, and the word behind it. */
static int take_redirect(struct parser *parser)
{
	const char *at = parser->at + (*parser->at >= '0' && *parser->at <= '2');
	if ((*at != '<' && *at != '>') || strncmp(at, "<<", 2) == 0)
		return 0;
	int fd = at > parser->at ? *parser->at - '0' : *at == '>';
	enum direction direction = *at == '<' ? READ : at[1] == '>' ? APPEND : at[1] == '&' ? SAME_AS : WRITE;
	parser->at = at + (direction == APPEND || direction == SAME_AS ? 2 : 1);
	skip_blanks(parser);
	take_word(parser);
	if (parser->token != WORD || *parser->word == '\0') {
		parser->token = UNKNOWN;
		return 1;
	}
	parser->token = REDIRECT;
	parser->redirect = (struct redirect){ fd, direction, parser->word, NULL };
	return 1;
}

static void next(struct parser *parser)
{
	static const struct { const char *text; enum token token; } operators[] = {
		{ "&&", AND_IF }, { "||", OR_IF }, { "|", BAR },    { ";;", UNKNOWN }, { ";", SEMICOLON },
		{ "\n", NEWLINE }, { "(", OPEN },  { ")", CLOSE }, { "&", UNKNOWN },   { "<<", UNKNOWN },
	};
	skip_blanks(parser);
	parser->start = parser->at;
	if (*parser->at == '\0') {
		parser->token = END;
		return;
	}
	for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) {
		size_t length = strlen(operators[i].text);
		if (strncmp(parser->at, operators[i].text, length) == 0) {
			parser->token = operators[i].token;
			parser->at += parser->token == UNKNOWN ? 0 : length;
			return;
		}
	}
	if (!take_redirect(parser))
		take_word(parser);
}

static void *bad(struct parser *parser)
{
	if (parser->result == PARSED) {
		parser->result = parser->token == END ? PARSED_INCOMPLETE : PARSED_BAD;
		parser->wrong = parser->start;
	}
	return NULL;
}

static int at_word(const struct parser *parser, const char *word)
{
	return parser->token == WORD && strcmp(parser->word, word) == 0;
}

/* Takes the reserved word, or the parse has failed. */
static void want(struct parser *parser, const char *word)
{
	if (at_word(parser, word))
		next(parser);
	else
		bad(parser);
}

static void skip_newlines(struct parser *parser)
{
	while (parser->token == NEWLINE)
		next(parser);
}

static struct node *node_of(enum kind kind, struct node *left, struct node *right)
{
	struct node *node = arena(sizeof *node);
	*node = (struct node){ .kind = kind, .left = left, .right = right };
	return node;
}

static struct node *parse_list(struct parser *parser, int newlines);
static struct node *parse_command(struct parser *parser);

/* A list that is not empty. */
static struct node *parse_body(struct parser *parser)
{
	struct node *list = parse_list(parser, 1);
	return list == NULL ? bad(parser) : list;
}

static struct node *parse_block(struct parser *parser, const char *end)
{
	struct node *list = parse_body(parser);
	want(parser, end);
	return list;
}

static struct node *parse_if(struct parser *parser)
{
	if (++parser->depth > DEPTH_MAX)
		return bad(parser);
	struct node *node = node_of(IF, parse_block(parser, "then"), NULL);
	node->right = parse_body(parser);
	if (at_word(parser, "elif")) {
		next(parser);
		node->otherwise = parse_if(parser);
		return node;
	}
	if (at_word(parser, "else")) {
		next(parser);
		node->otherwise = parse_body(parser);
	}
	want(parser, "fi");
	return node;
}

static struct node *parse_for(struct parser *parser)
{
	struct node *node = node_of(FOR, NULL, NULL);
	if (parser->token != WORD || name_length(parser->word) != strlen(parser->word))
		return bad(parser);
	node->name = parser->word;
	next(parser);
	skip_newlines(parser);
	want(parser, "in");
	for (struct words **end = &node->words; parser->token == WORD; end = &(*end)->next) {
		*end = arena(sizeof **end);
		(*end)->text = parser->word;
		next(parser);
	}
	if (parser->token != SEMICOLON && parser->token != NEWLINE)
		return bad(parser);
	next(parser);
	skip_newlines(parser);
	want(parser, "do");
	node->right = parse_block(parser, "done");
	return node;
}

static struct node *parse_loop(struct parser *parser, enum kind kind)
{
	struct node *node = node_of(kind, parse_block(parser, "do"), NULL);
	node->right = parse_block(parser, "done");
	return node;
}

static void parse_redirects(struct parser *parser, struct node *node)
{
	struct redirect **end = &node->redirects;
	while (*end != NULL)
		end = &(*end)->next;
	for (; parser->token == REDIRECT; end = &(*end)->next) {
		*end = arena(sizeof **end);
		**end = parser->redirect;
		next(parser);
	}
}

static struct node *parse_simple(struct parser *parser)
{
	struct node *node = node_of(SIMPLE, NULL, NULL);
	struct words **end = &node->words;
	while (parser->token == WORD || parser->token == REDIRECT) {
		if (parser->token == REDIRECT) {
			parse_redirects(parser, node);
			continue;
		}
		*end = arena(sizeof **end);
		(*end)->text = parser->word;
		end = &(*end)->next;
		next(parser);
	}
	return node->words == NULL && node->redirects == NULL ? bad(parser) : node;
}

/* A compound command by its first word; NULL when it is none. */
static struct node *parse_compound(struct parser *parser)
{
	static const char *const words[] = { "if", "while", "until", "for", "{" };
	size_t which = 0;
	if (parser->token == OPEN) {
		next(parser);
		struct node *node = node_of(SUBSHELL, parse_body(parser), NULL);
		if (parser->token != CLOSE)
			return bad(parser);
		next(parser);
		return node;
	}
	while (which < 5 && !at_word(parser, words[which]))
		which++;
	if (which == 5)
		return NULL;
	next(parser);
	switch (which) {
	case 0: return parse_if(parser);
	case 1: return parse_loop(parser, WHILE);
	case 2: return parse_loop(parser, UNTIL);
	case 3: return parse_for(parser);
	default: return node_of(GROUP, parse_block(parser, "}"), NULL);
	}
}

static struct node *parse_command(struct parser *parser)
{
	if (++parser->depth > DEPTH_MAX)
		return bad(parser);
	struct node *node = parse_compound(parser);
	if (node != NULL)
		parse_redirects(parser, node);
	else if (parser->result == PARSED)
		node = parse_simple(parser);
	parser->depth--;
	return node;
}

static struct node *parse_pipeline(struct parser *parser)
{
	int not = at_word(parser, "!"), sides = 0;
	if (not)
		next(parser);
	struct node *node = parse_command(parser);
	while (parser->result == PARSED && parser->token == BAR) {
		if (++sides > DEPTH_MAX)
			return bad(parser);
		next(parser);
		skip_newlines(parser);
		node = node_of(PIPE, node, parse_command(parser));
	}
	return not ? node_of(NOT, node, NULL) : node;
}

static struct node *parse_and_or(struct parser *parser)
{
	struct node *node = parse_pipeline(parser);
	for (int sides = 0; parser->result == PARSED && (parser->token == AND_IF || parser->token == OR_IF); sides++) {
		enum kind kind = parser->token == AND_IF ? AND : OR;
		if (sides > DEPTH_MAX)
			return bad(parser);
		next(parser);
		skip_newlines(parser);
		node = node_of(kind, node, parse_pipeline(parser));
	}
	return node;
}

/* Whether a list ends here, as no command starts with this. */
static int ends_list(const struct parser *parser)
{
	static const char *const words[] = { "then", "elif", "else", "fi", "do", "done", "}" };
	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
		if (at_word(parser, words[i]))
			return 1;
	return parser->token == END || parser->token == CLOSE || parser->token == NEWLINE;
}

/* Commands one after the other; on several lines, or up to the end of this one. */
static struct node *parse_list(struct parser *parser, int newlines)
{
	struct node *list = NULL, **end = &list;
	for (;;) {
		if (newlines)
			skip_newlines(parser);
		if (parser->result != PARSED || ends_list(parser))
			return list;
		*end = node_of(SEQUENCE, parse_and_or(parser), NULL);
		end = &(*end)->right;
		if (parser->token == SEMICOLON)
			next(parser);
		else if (!newlines || parser->token != NEWLINE)
			return list;
	}
}

enum parsed parse(const char **text, struct node **tree, const char **word)
{
	struct parser parser = { .at = *text };
	next(&parser);
	if (parser.token == END)
		return PARSED_END;
	*tree = parse_list(&parser, 0);
	if (parser.result == PARSED && parser.token != END && parser.token != NEWLINE)
		bad(&parser);
	if (parser.result == PARSED_BAD)
		*word = *parser.wrong == '\n' ? "unexpected end of line" : arena_copy(parser.wrong, strcspn(parser.wrong, "\n"));
	*text = parser.at;
	return parser.result;
}
