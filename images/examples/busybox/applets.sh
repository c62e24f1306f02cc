echo -e 'tab\tnewline\nhex \x41 octal \0101\c' ignored; echo
echo -E 'a\tb' -n; echo -x
mkdir -p /tmp/a/b/c; touch /tmp/a/b/file /tmp/a/.hidden; ls /tmp/a; ls -a /tmp/a; ls -A /tmp/a
ls -l /bin/sh | grep -c 'l .* /bin/sh -> busybox$'
echo 12345 > /tmp/a/five; stat -c '%n %F' /tmp/a /bin/sh; stat -c '%s%%' /tmp/a/five
rm /tmp/a 2>/dev/null || echo a directory stays; rm -r /tmp/a; ls /tmp; rm -f /tmp/absent && echo forced
mkdir /tmp/x && mkdir /tmp/x 2>/dev/null || echo there already
seq 1 12 > /tmp/lines; head /tmp/lines | wc -l; head -n 2 /tmp/lines; head -c 3 /tmp/lines; wc /tmp/lines; seq -s , 9 11
cat /tmp/lines - /etc/hostname < /etc/hostname | wc -c
grep -c 1 /tmp/lines; grep -v '[0-9]' /tmp/lines; echo $?; grep -qE '^(11|12)$' /tmp/lines && echo matched
test -d /tmp && test -f /tmp/lines -a 2>/dev/null; echo $?; [ ! -e /tmp/absent ] && [ -n text ] && [ -s /tmp/lines ] && echo tested
hostname; id; id -u; id -nu; id -G; pgrep sleep || echo none; tty || echo no terminal
sleep 0.05 && echo slept; sleep 1x 2>/dev/null || echo not slept
true; echo $?; false; echo $?; env -i 2>/dev/null || env A=b sh -c 'echo $A'
cd /tmp/x && pwd && cd .. && pwd; ls -d .; busybox | head -n 1
rm -rf / 2>/dev/null || echo the root stays; test -f /bin/busybox && echo it does
yes text | head -c 8; rm -r /tmp/x /tmp/lines; ls -A /tmp
printf '%s is %d%%\n' one 1 two -2; printf 'plain\tand \x41\n'; printf '%q' x 2>/dev/null || echo unknown
sync && [ $(date +%s) -gt 1700000000 ] && date | grep -qE '^[0-9-]{10} [0-9:]{8} UTC$' && echo dated
