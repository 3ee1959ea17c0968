# Prints, one line each, sorted, and marked, what a process can see of its own start; $$ is the application.
me=/proc/$$
set -- $(sed 's/.*) //' $me/stat) # state ppid pgrp session tty tpgid ... nice is the 17th
yes_if() { if "$@"; then echo yes; else echo no; fi; }
{
echo "is PID 1: $(yes_if test $$ = 1)"
echo "leads its group: $(yes_if test "$3" = $$)"
echo "leads its session: $(yes_if test "$4" = $$)"
echo "is the terminal's foreground: $(yes_if test "$6" = "$3")"
echo "terminal: $(tty)"
echo "nice: ${17}"
echo "identity: $(id)"
echo "umask: $(umask)"
echo "directory: $(pwd)"
echo "hostname: $(hostname)"
echo "owner of its /proc: $(stat -c %u:%g $me)"
for it in oom_score_adj coredump_filter personality; do echo "$it: $(cat $me/$it 2>&1)"; done
sed 's/^/cgroup: /; s/[0-9a-f]\{64\}/ID/' $me/cgroup
sed -n 's/^\(Max .*\)/limit: \1/p' $me/limits
grep -E '^(Groups|Sig(Pnd|Blk|Ign|Cgt)|ShdPnd|Cap|NoNewPrivs|Seccomp|Speculation|CoreDumping|THP|Cpus_allowed_list)' $me/status
for it in $me/fd/*; do
  echo "descriptor ${it##*/}: $(readlink "$it" | sed 's/\[[0-9]*\]//') $(grep ^flags $me/fdinfo/"${it##*/}")"
done
env | sed 's/^/environment: /'
# Without the numbers of the mount and its device, and the container's own directories.
sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ /mount: /; s/(lower|upper|work)dir=[^,]*/\1dir/g; s/[0-9a-f]{64}/ID/; s/master:[0-9]+/master/' $me/mountinfo
} | sort -u | sed 's/^/app: /'
