# Who an agent is on the host: uid, bridge and subnets, each a pure function of its own name and uid. No other
# agent takes part, so adding, removing or renaming one never changes another (U3).
let
  inherit (builtins)
    hashString
    match
    stringLength
    substring
    ;
  inherit (import ./text.nix) fromHex;
  inherit (import ./addresses.nix) formatAddress formatNetwork;

  # Derived uids are `base + slot`. systemd's "Users, Groups, UIDs and GIDs" lists 1879048192…2147483647 as unused:
  # people, system users, DynamicUser, homed, nspawn and subordinate ranges are all elsewhere.
  base = 1900000000;
  slots = 1048576; # 2^20: as many /29 as fit into 10.128.0.0/9
  slotOf = text: fromHex (substring 0 5 (hashString "sha256" text));

  # An interface name has at most 15 characters; longer ones are cut and told apart by a hash. Every bridge
  # starts with "h-", which is how the firewall knows an agent, even one that it has no other rule for.
  bridge =
    name:
    if stringLength name <= 13 then
      "h-${name}"
    else
      "h-${builtins.head (match "(.*[^-])-*" (substring 0 6 name))}-${
        substring 0 6 (hashString "sha256" name)
      }";

  # Network number `slot`: a /29 of 10.128.0.0/9 and a /80 of our own ULA prefix ("tent" + "a" in ASCII).
  ipv4 =
    slot:
    let
      words =
        host:
        let
          offset = slot * 8 + host;
        in
        [
          (10 * 256 + 128 + offset / 65536)
          (builtins.bitAnd offset 65535)
        ];
    in
    subnet words 29;
  ipv6 =
    slot:
    subnet (host: [
      64884 # fd74
      25966 # 656e
      29793 # 7461
      (slot / 65536)
      (builtins.bitAnd slot 65535)
      0
      0
      host
    ]) 80;
  subnet = words: prefix: {
    subnet = formatNetwork {
      words = words 0;
      inherit prefix;
    };
    gateway = formatAddress (words 1);
    address = formatAddress (words 2);
  };
in
{
  # All that agents' networks can be.
  range = {
    ipv4 = "10.128.0.0/9";
    ipv6 = "fd74:656e:7461::/48";
  };

  # `uid` is the one that the spec sets, or null.
  identityOf =
    { name, uid }:
    let
      wanted = if uid == null then base + slotOf name else uid;
      derived = wanted >= base && wanted < base + slots;
      slot = if derived then wanted - base else slotOf "uid-${toString wanted}";
    in
    {
      uid = wanted;
      gid = wanted;
      user = "hermes-${name}";
      bridge = bridge name;
      inherit slot;
      ipv4 = ipv4 slot;
      ipv6 = ipv6 slot;
    };
}
