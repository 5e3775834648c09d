# Stops the PostgreSQL of a test run and removes its folder once nobody needs
# it: also when tests, or their runner, are killed.
#
# $1 the folder of the run   $2 the process that runs the tests
# $3 the postmaster          $4 the folder of PostgreSQL's data
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
# From here on a new test program starts a server of its own.
mv "$1" "$1.gone" 2>/dev/null
# A test may have stopped the server itself: then its id may be another's.
if [ "$(head -n 1 "$4/data/postmaster.pid" 2>/dev/null)" = "$3" ]; then
    kill -QUIT "$3" 2>/dev/null
fi
tries=0
while kill -0 "$3" 2>/dev/null && [ "$tries" -lt 100 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
rm -rf "$1.gone" "$4"
