# IP addresses and networks, both families in one form: an address is a list of 16-bit words (two for IPv4,
# eight for IPv6), a network is `{ family; words; prefix; }`.
let
  inherit (builtins)
    all
    bitAnd
    concatLists
    concatStringsSep
    elemAt
    filter
    foldl'
    fromJSON
    genList
    head
    isString
    length
    match
    split
    stringLength
    ;
  inherit (import ./text.nix) fromHex indices toHex;

  pow2 = n: if n == 0 then 1 else 2 * pow2 (n - 1);
  splitOn = separator: text: filter isString (split separator text);
  decimal = text: if match "0|[1-9][0-9]{0,2}" text == null then null else fromJSON text;

  # Each parser gives the words, or null for what is not an address.
  parse4 =
    text:
    let
      octets = map decimal (splitOn "\\." text);
      word = i: elemAt octets i * 256 + elemAt octets (i + 1);
    in
    if length octets == 4 && all (octet: octet != null && octet <= 255) octets then
      [
        (word 0)
        (word 2)
      ]
    else
      null;

  # Words separated by colons; an IPv4 address stands for two.
  parseGroups =
    text:
    let
      group =
        part:
        if match "[0-9A-Fa-f]{1,4}" part != null then
          [ (fromHex part) ]
        else if match "[0-9.]{7,15}" part != null then
          parse4 part
        else
          null;
      parts = splitOn ":" text;
      groups = map group parts;
    in
    if text == "" then
      [ ]
    else if all (g: g != null) groups then
      concatLists groups
    else
      null;

  parse6 =
    text:
    let
      sides = map parseGroups (splitOn "::" text);
      written = foldl' (sum: side: sum + length side) 0 sides;
      zeros = genList (_: 0) (8 - written);
      # "::" must be the one place where zeros are left out, and there must be some to leave out.
      compressed = length sides == 2 && written <= 7;
      dottedInFront = match ".*\\..*:.*" text != null;
    in
    if !(all (side: side != null) sides) || dottedInFront then
      null
    else if compressed then
      head sides ++ zeros ++ elemAt sides 1
    else if length sides == 1 && written == 8 then
      head sides
    else
      null;

  # `{ family; words; }` or null.
  parseAddress =
    text:
    let
      is6 = match ".*:.*" text != null;
      words = if is6 then parse6 text else parse4 text;
    in
    if stringLength text > 45 || words == null then
      null
    else
      {
        family = if is6 then 6 else 4;
        inherit words;
      };

  # RFC 5952: no leading zeros, lower case, and the first of the longest runs of zero words is "::".
  format6 =
    words:
    let
      hex = map toHex words;
      runAt = i: if i < 8 && elemAt words i == 0 then 1 + runAt (i + 1) else 0;
      longest =
        foldl'
          (
            best: i:
            if runAt i > best.size then
              {
                at = i;
                size = runAt i;
              }
            else
              best
          )
          {
            at = 0;
            size = 1;
          }
          (indices 8);
      slice = from: to: concatStringsSep ":" (genList (i: elemAt hex (from + i)) (to - from));
    in
    if longest.size == 1 then
      slice 0 8
    else
      "${slice 0 longest.at}::${slice (longest.at + longest.size) 8}";

  format4 =
    words:
    concatStringsSep "." (
      concatLists (
        map (word: [
          (toString (word / 256))
          (toString (bitAnd word 255))
        ]) words
      )
    );

  formatAddress = words: if length words == 2 then format4 words else format6 words;
  formatNetwork = network: "${formatAddress network.words}/${toString network.prefix}";
  bits = family: if family == 4 then 32 else 128;

  # The address with everything after the first `prefix` bits cleared.
  mask =
    prefix: words:
    genList (
      i:
      let
        kept = prefix - 16 * i;
        clear = pow2 (16 - kept);
        word = elemAt words i;
      in
      if kept >= 16 then
        word
      else if kept <= 0 then
        0
      else
        word / clear * clear
    ) (length words);

  # Two networks are either disjoint or one lies in the other.
  contains =
    outer: inner: outer.prefix <= inner.prefix && mask outer.prefix inner.words == outer.words;

  # `{ network; }` for a network in canonical form, else `{ rule; fix; }`.
  parseNetwork =
    text:
    let
      parts = splitOn "/" text;
      address = parseAddress (head parts);
      prefix = decimal (elemAt parts 1);
      network = {
        inherit (address) family;
        inherit prefix;
        words = mask prefix address.words;
      };
      canonical = formatNetwork network;
      shape = {
        rule = "must be an IPv4 or IPv6 network in CIDR notation";
        fix = "write it like 192.0.2.0/24 or 2001:db8::/32";
      };
    in
    if stringLength text > 49 || length parts > 2 || address == null then
      shape
    else if length parts == 1 then
      {
        rule = "must be a network, and this is an address without a prefix length";
        fix = "write ${formatAddress address.words}/${toString (bits address.family)} for this one address";
      }
    else if prefix == null || prefix > bits address.family then
      {
        rule = "must have a prefix length from 0 to ${toString (bits address.family)}";
        fix = "write ${formatAddress address.words}/${toString (bits address.family)} for this one address";
      }
    else if network.words != address.words then
      {
        rule = "must not have host bits set";
        fix = "write ${canonical} for the network";
      }
    else if canonical != text then
      {
        rule = "must be in canonical form";
        fix = "write ${canonical}";
      }
    else
      { inherit network; };
in
{
  inherit
    contains
    formatAddress
    formatNetwork
    parseAddress
    parseNetwork
    ;
}
