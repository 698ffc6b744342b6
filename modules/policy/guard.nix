# What rules are in force, and are they those that were loaded? Scripts for sh(1), with nft(8), jq(1), grep(1) and systemctl(1) in
# PATH: `listing` prints the rules, `note` is run after the table was loaded, `guard` from time to time.
{ family, table }:
let
  loaded = "/run/tentaflake-table";
  # A line for each chain, rule and set, without what changes by itself: the kernel's own numbers, and what packets put into
  # a set (one that they fill has a size or a timeout; from nftables 1.1.7 on it is counted).
  rules = ''
    rules() {
      listing=$(nft --json --stateless list table ${family} ${table}) || return
      printf '%s\n' "$listing" | jq --compact-output --sort-keys '
        .nftables[] | select(.metainfo | not)
        | walk(if type == "object" then del(.handle, .count) else . end)
        | if .set and (.set | has("size") or has("timeout")) then del(.set.elem) else . end'
    }
  '';
in
{
  inherit family table;
  listing = "${rules}rules\n";
  note = ''
    umask 077
    ${rules}
    rules > ${loaded}
  '';
  guard = ''
    ${rules}
    again() {
      echo 'the rules could not be listed: asking again later' >&2
      exit 0
    }
    tables=$(nft list tables) || again
    now=
    if printf '%s\n' "$tables" | grep -qxF 'table ${family} ${table}'; then
      now=$(rules) || again
    fi
    [ "$now" = "$(cat ${loaded})" ] || {
      echo 'the rules are not those that were loaded: loading them again' >&2
      systemctl reload-or-restart nftables.service
    }
  '';
}
