# mirror.sh is sourced: it sets $mirror, the Debian mirror that this machine's apt uses.
find_mirror() {
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(SITE)' 'Created-By: Packages' | awk -F'|' '$1=="Debian" && $2=="Debian"{print $3; exit}'
}
mirror=$(find_mirror)
if [ -z "$mirror" ]; then
  apt-get -o Acquire::Retries=3 update -qq
  mirror=$(find_mirror)
fi
[ -n "$mirror" ] || { echo "$(basename "$0"): apt knows no Debian mirror" >&2; exit 1; }
