# cache.sh is sourced: it sets $cache, where what tests compare with is unpacked once a machine, and once(), which
# makes an entry of it.
cache=${STATED_TEST_CACHE:-/var/cache/stated-test}
mkdir -p "$cache"

# once NAME COMMAND...: run COMMAND with the path of a fresh directory as its last argument, and keep that directory as
# $cache/NAME; do nothing when it is there already.
once() {
  local name=$1
  shift
  exec 9>"$cache/$name.lock"
  flock 9
  if [ ! -e "$cache/$name" ]; then
    rm -rf "$cache/$name.new"
    mkdir -p "$cache/$name.new"
    "$@" "$cache/$name.new" >&2
    mv "$cache/$name.new" "$cache/$name"
  fi
  exec 9>&-
}
