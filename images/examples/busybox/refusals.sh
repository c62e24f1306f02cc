ls /absent
cat /absent < /also-absent
cat /etc
mkdir /absent/x
rm /absent
stat /absent
head -n x
ls -Z
sleep soon
top 'x' > /absent/file
hostname other
/etc/passwd
absent
[ 1 -eq x ]
[ 1 = 1
seq
yes | wc -c
echo ${x?message}
echo `echo fine >/dev/null` ; sleep 1 & echo
echo not reached
