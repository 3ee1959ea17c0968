# Prints what a process can see of its own start, a marked line each; $$ is the application. It starts no subshell while its
# descriptors are looked at.
me=/proc/$$
set -- $(sed 's/.*) //' $me/stat) # state ppid pgrp session tty tpgid ... nice is the 17th
yes_if() { if "$@"; then echo yes; else echo no; fi; }
say() { echo "app: $*"; }
mark() { sed -E "s/^/app: $1/" "$2"; }
say "is PID 1: $(yes_if test $$ = 1)"
say "leads its group: $(yes_if test "$3" = $$)"
say "leads its session: $(yes_if test "$4" = $$)"
say "is the terminal's foreground: $(yes_if test "$6" = "$3")"
say "terminal: $(tty)"
say "nice: ${17}"
say "identity: $(id)"
say "umask: $(umask)"
say "directory: $(pwd)"
say "hostname: $(hostname)"
say "owner of its /proc: $(stat -c %u:%g $me)"
for it in oom_score_adj coredump_filter personality; do mark "$it: " $me/$it; done
sed -E 's/^/app: cgroup: /; s/[0-9a-f]{64}/ID/' $me/cgroup
sed -En 's/^(Max .*)/app: limit: \1/p' $me/limits
sed -En 's/^((Groups|Cap|NoNewPrivs|Seccomp|Speculation|CoreDumping|THP|Cpus_allowed_list).*)/app: \1/p' $me/status
for it in $me/fd/*; do
  say "descriptor ${it##*/}: $(readlink "$it" | sed 's/\[[0-9]*\]//') $(grep ^flags $me/fdinfo/"${it##*/}")"
done
env | mark 'environment: ' -
# Without the numbers of the mount and its device, and the container's own directories.
sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ /app: mount: /; s/(lower|upper|work)dir=[^,]*/\1dir/g; s/[0-9a-f]{64}/ID/; s/master:[0-9]+/master/' $me/mountinfo
