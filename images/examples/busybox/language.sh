# quotes, variables, fields
a='single $a "x"' b="double $GIVEN" c=many\ \ blanks
echo "$a/$b" $c "$c"
empty= set=yes
echo [${empty:-default}] [${unset-default}] [${empty-kept}] [${set:+$set!}] [${#set}] [$empty]
echo one\
two # a comment
sh -c 'echo $# $0 $1; for each in "$@" "" $unset "x y"; do echo "<$each>"; done' name 'first  one' second

# statuses
false; echo $?
true && echo and || echo not this
false && echo not this || echo or
! false && echo negated
value=$(exit 4) || echo status of a substitution $?
(exit 3); echo subshell $?
absent 2>/dev/null; echo $?
/bin/absent 2>/dev/null; echo $?
/etc/passwd 2>/dev/null; echo $?

# compound commands
if false; then echo no; elif [ 2 -gt 1 ]; then echo elif; else echo no; fi
for i in 1 2 3 4 5; do
	if [ $i = 2 ]; then continue; fi
	if [ $i = 4 ]; then break; fi
	echo turn $i
done
until [ -f /tmp/there ]; do touch /tmp/there; echo made; done
{ echo grouped; echo twice; } | wc -l
seq 3 | while read line; do echo "line $line"; done
yes | head -n 2

# failure as the end
sh -e -c 'false || echo handled; if false; then :; fi; ! true; echo on; false; echo not this'; echo $?
sh -ec '(exit 6); echo not this'; echo $?

# what stays and what does not
x=1; (x=2; cd /tmp; echo $x $(pwd)); echo $x $(pwd)
PLACE=here env | grep PLACE; echo [$PLACE]
export PLACE=there; env | grep PLACE; unset PLACE; env | grep -c PLACE

# streams
cd /tmp
echo first > file; echo second >> file; cat < file
{ echo out; echo err >&2; } > both 2>&1; cat both
ls absent 2> error; echo $? $(cat error)
echo f*e "f*e" [e-f]ile nothing*
echo "nested $(echo "inner $(echo "in most")")" `echo old`
read answer
this is read by the line before
echo "answer: $answer"
cat
what follows belongs to cat,
exit 9
