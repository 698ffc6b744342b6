# The fields of an agent spec: type, default and rule of each. docs/agents.md explains them to users.
let
  inherit (builtins)
    any
    elem
    filter
    floor
    fromJSON
    isAttrs
    isFloat
    isInt
    isList
    isString
    head
    match
    stringLength
    substring
    ;
  inherit (import ./addresses.nix) parseNetwork;
  types = import ./types.nix;
  inherit (types)
    also
    intBetween
    invalid
    listOf
    matches
    nullOr
    record
    satisfying
    valid
    ;

  # `hermes-<name>` has to fit the 31 characters that a Unix user name may have. The audit daemon's user is
  # hermes-auditd and its readers' group hermes-audit: an agent of that name would be the daemon, or read the record.
  name =
    also
      (types.matching "[a-z]([a-z0-9-]{0,22}[a-z0-9])?"
        "must be 1 to 24 lower-case letters, digits and dashes, from a letter to a letter or digit"
        "write a name like \"coding\" or \"web-search\""
      )
      (
        satisfying
          (
            value:
            !elem value [
              "audit"
              "auditd"
            ]
          )
          "is reserved: the audit daemon has the user hermes-auditd and the group hermes-audit"
          "choose another name"
      );

  # Docker's reference grammar (distribution/reference): [domain/]path[:tag][@digest].
  image =
    let
      label = "([A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])";
      # Without a colon or a dot Docker takes what is in front for a part of the path.
      domain = "(${label}(\\.${label})*|\\[[0-9a-fA-F]*:[0-9a-fA-F:]*])(:[0-9]+)?";
      component = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*";
      reference = "(${domain}/)?${component}(/${component})*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?";
    in
    also
      (types.matching reference "must be an image reference as Docker reads it"
        "write repo@sha256:<64 hex digits>"
      )
      (
        # Docker's limit is 255 with "docker.io/library/" in front.
        satisfying (
          value: stringLength (head (match "([^@]*).*" value)) <= 237
        ) "must have at most 237 characters before its digest" "choose a shorter name"
      );

  # Set by the host for every agent: a spec that could change them could make an agent pass for another.
  reservedVariables = [
    "HOME"
    "USER"
    "LOGNAME"
    "HOSTNAME"
    "HERMES_HOME"
    "HERMES_UID"
    "HERMES_GID"
  ];
  variableName =
    variable:
    if !isString variable || !matches "[A-Za-z_][A-Za-z0-9_]*" variable then
      invalid variable "must be the name of an environment variable"
        "use letters, digits and _, not a digit first"
    else if elem variable reservedVariables then
      invalid variable "is reserved: the host sets it" "choose another name"
    else if variable == "outPath" || variable == "__toString" then
      invalid variable "is reserved: Nix takes a set that has it for a package" "choose another name"
    else
      valid variable;
  environment = types.attrsOf "strings" (
    variable: value:
    let
      named = variableName variable;
    in
    if named.errors != [ ] then named else types.argument value
  );

  # Directories below /var/lib that belong to somebody else.
  reservedDirectories = map (directory: "/var/lib/${directory}") [
    "apt"
    "containerd"
    "dbus"
    "docker"
    "dpkg"
    "hermes-auditd"
    "nixos"
    "private"
    "systemd"
    "tailscale"
    "tentaflake"
  ];
  isWithin = outer: path: path == outer || substring 0 (stringLength outer + 1) path == "${outer}/";
  stateDir =
    let
      segment = "([A-Za-z0-9_-][A-Za-z0-9._-]*|\\.[A-Za-z0-9_-][A-Za-z0-9._-]*|\\.\\.[A-Za-z0-9._-]+)";
      touches = path: directory: isWithin directory path || isWithin path directory;
    in
    also
      (also types.text (
        satisfying (path: stringLength path <= 200 && matches "/var/lib(/${segment})+" path) (
          "must be an absolute path below /var/lib, of letters, digits and . _ - only,"
          + " without . or .. or empty parts, at most 200 characters"
        ) "write a path like /var/lib/hermes-coding"
      ))
      (
        path:
        let
          reserved = filter (touches path) reservedDirectories;
        in
        if reserved == [ ] then
          valid path
        else
          invalid path "must keep clear of ${head reserved}, which belongs to another program"
            "choose another directory below /var/lib"
      );

  uid =
    let
      ranges = [
        [
          400
          60000
        ]
        [
          65536
          524287
        ]
        [
          1879048192
          2147483646
        ]
      ];
      inRange = value: range: value >= head range && value <= builtins.elemAt range 1;
    in
    satisfying (value: isInt value && any (inRange value) ranges)
      "must be an integer in 400 to 60000, 65536 to 524287 or 1879048192 to 2147483646"
      "leave it out for a derived uid";

  # Bytes, or a number with a unit; a unit is binary, as it is for Docker (k = 1024).
  size =
    least: leastText:
    let
      most = 1125899906842624; # 1 PiB: a typing error, and safe from overflow
      units = {
        "" = 1;
        k = 1024;
        m = 1048576;
        g = 1073741824;
        t = 1099511627776;
      };
      lower = builtins.replaceStrings [ "K" "M" "G" "T" ] [ "k" "m" "g" "t" ];
      parse =
        text:
        let
          wellFormed = matches "(0|[1-9][0-9]{0,15})([kKmMgGtT]([iI]?[bB])?|[bB])?" text;
          found = if wellFormed then match "([0-9]+)(.?).*" (lower text) else null;
          # "512b" and "512" are bytes.
          unit = units.${builtins.elemAt found 1} or 1;
          number = fromJSON (head found);
        in
        if found == null then
          null
        else if number > most / unit then
          most + 1
        else
          number * unit;
      bytes =
        value:
        if isInt value then
          value
        else if isString value then
          parse value
        else
          null;
    in
    value:
    let
      size = bytes value;
    in
    if size != null && size >= least && size <= most then
      valid size
    else
      invalid value "must be a size from ${leastText} to 1 PiB, in bytes or like \"512m\" or \"2g\""
        "write a size like \"1g\"";

  memory = size 16777216 "16 MiB"; # below, no agent's interpreter starts
  disk = size 1048576 "1 MiB";

  # Thousandths of a CPU: exact in Docker's fixed-point numbers, and one way to write each.
  cpus =
    value:
    let
      thousandths = floor (value * 1000 + 0.5);
      whole = floor (value + 0.5);
    in
    if
      (isInt value || isFloat value)
      && value >= 0.01
      && value <= 1024
      && (value < 1000 || whole * 1.0 == value * 1.0) # Nix 2.8 writes six digits
      && thousandths / 1000.0 == value * 1.0
    then
      valid (if whole * 1.0 == value * 1.0 then whole else value)
    else
      invalid value "must be a number of CPUs from 0.01 to 1024, in steps of 0.001, and from 1000 in whole ones"
        "write a number like 0.5 or 2";

  protocol = types.oneOf [
    "tcp"
    "udp"
  ];

  network = also types.text (
    value:
    let
      parsed = parseNetwork value;
    in
    if parsed ? network then
      valid (parsed.network // { text = value; })
    else
      invalid value parsed.rule parsed.fix
  );
  ports = also (listOf "ports" types.port) (
    satisfying (value: value != [ ]) "must name at least one port" "leave it out to allow every port"
  );
  destination =
    also
      (record "an egress destination" {
        network.type = network;
        ports = {
          type = nullOr ports;
          default = null;
        };
        protocol = {
          type = nullOr protocol;
          default = null;
        };
      })
      (
        value:
        if value.protocol == null && value.ports != null then
          valid (value // { protocol = "tcp"; })
        else
          valid value
      );
  egress =
    value:
    if value == "none" || value == [ ] then
      valid "none"
    else if value == "internet" then
      valid "internet"
    else if isList value then
      listOf "destinations" destination value
    else
      invalid value "must be \"none\", \"internet\" or a list of { network; ports?; protocol?; }"
        "write \"internet\" for public addresses only";

  published =
    let
      long = record "a published port" {
        port.type = types.port;
        target = {
          type = nullOr types.port;
          default = null;
        };
        protocol = {
          type = protocol;
          default = "tcp";
        };
      };
      complete = also long (
        value: valid (if value.target == null then value // { target = value.port; } else value)
      );
      short = also types.port (port: complete { inherit port; });
    in
    value: if isAttrs value then complete value else short value;

  # Only the shape: what a secret's file holds is seen at activation.
  secretFile =
    let
      segment = "([A-Za-z0-9_-][A-Za-z0-9._-]*|\\.[A-Za-z0-9_-][A-Za-z0-9._-]*)";
    in
    types.matching "(${segment}/)*${segment}\\.age"
      "must be the relative path of an age file, as a string: letters, digits and . _ - without . or .. or empty parts"
      "write it relative to the flake, like \"secrets/openai-key.age\"";
  secret =
    also
      (record "a secret" {
        name.type =
          types.matching "[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
            "must be 1 to 64 letters, digits and . _ -, not . or - first"
            "write a name like \"openai-key\"";
        file.type = secretFile;
        as = {
          type = types.oneOf [
            "file"
            "env"
          ];
          default = "file";
        };
        variable = {
          type = nullOr variableName;
          default = null;
        };
        shared = {
          type = types.bool;
          default = false;
        };
      })
      (
        value:
        if value.as == "file" && value.variable != null then
          invalid value.variable "is of no use, because as = \"file\""
            "set as = \"env\", or leave variable out"
        else if value.as == "file" || value.variable != null then
          valid value
        else if (variableName value.name).errors != [ ] then
          invalid value.name "must be a free environment variable's name, because as = \"env\""
            "set variable to one, or use as = \"file\""
        else
          valid (value // { variable = value.name; })
      );

  settings = also (satisfying isAttrs "must be an attribute set, the content of Hermes' config.yaml"
    "write { … }"
  ) types.json;

  field = type: default: { inherit type default; };
in
record "an agent spec" {
  name.type = name;
  image = field (nullOr image) null;
  allowMutableImage = field types.bool false;
  command = field (listOf "strings" types.argument) [ ];
  environment = field environment { };
  settings = field settings { };
  secrets = field (listOf "secrets" secret) [ ];
  stateDir = field (nullOr stateDir) null; # /var/lib/hermes-<name>
  uid = field (nullOr uid) null; # derived from the name
  memory = field memory 1073741824; # 1 GiB
  cpus = field cpus 1;
  disk = field (nullOr disk) null; # no quota
  pids = field (intBetween 8 4194304 "a number of processes") 256;
  egress = field egress "none";
  publish = field (listOf "ports" published) [ ];
  tts = field types.bool false;
  autoStart = field types.bool true;
}
