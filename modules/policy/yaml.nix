# Data as JSON that a YAML parser reads as the same data. Every JSON text is YAML, but for three things that YAML 1.1 and
# the parser of Hermes (PyYAML) have against some: characters, numbers and long keys. The first are escaped here.
let
  inherit (builtins) fromJSON replaceStrings toJSON;
  # No YAML text may hold these, or they end a line in it, which a parser then folds into a space.
  codes =
    [ "007f" ]
    ++ map (digit: "008${digit}") digits
    ++ map (digit: "009${digit}") digits
    ++ [
      "2028"
      "2029"
      "feff"
      "fffe"
      "ffff"
    ];
  digits = [
    "0"
    "1"
    "2"
    "3"
    "4"
    "5"
    "6"
    "7"
    "8"
    "9"
    "a"
    "b"
    "c"
    "d"
    "e"
    "f"
  ];
  escapes = map (code: "\\u${code}") codes;
  characters = map (escape: fromJSON "\"${escape}\"") escapes;
in
{
  toYaml = value: replaceStrings characters escapes (toJSON value);
}
