# Stops the PostgreSQL of a test run and removes its folder once nobody needs
# it: also when tests, or their runner, are killed.
#
# $1 the folder of the run   $2 the process that runs the tests
# $3 the folder of PostgreSQL's data
idle=0
while :; do
    used=
    for user in "$1"/users/*; do
        if kill -0 "${user##*/}" 2>/dev/null; then used=yes; else rm -f "$user"; fi
    done
    if [ -n "$used" ]; then
        idle=0
    elif ! kill -0 "$2" 2>/dev/null; then
        break
    else
        # The runner is still there, between two test programs or busy with
        # other things: wait for 15 seconds.
        idle=$((idle + 1))
        [ "$idle" -lt 150 ] || break
    fi
    sleep 0.1
done
# A test may have stopped it, and started it again: its own file says who it is.
postmaster=$(head -n 1 "$3/data/postmaster.pid" 2>/dev/null)
# From here on a new test program starts a server of its own. It may do so in
# the same folders: what is removed has other names by then.
mv "$3" "$3.gone" 2>/dev/null
mv "$1" "$1.gone" 2>/dev/null
if [ -n "$postmaster" ]; then
    kill -QUIT "$postmaster" 2>/dev/null
    tries=0
    while kill -0 "$postmaster" 2>/dev/null && [ "$tries" -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
fi
rm -rf "$1.gone" "$3.gone"
