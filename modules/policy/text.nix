# Small text helpers: rendering a value for an error message, "did you mean", hexadecimal.
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elemAt
    foldl'
    genList
    head
    length
    match
    stringLength
    substring
    toJSON
    typeOf
    ;

  chars = text: genList (i: substring i 1 text) (stringLength text);
  indices = genList (i: i);
  take = n: list: genList (elemAt list) (if length list < n then length list else n);

  # At most `limit` bytes. A cut may fall inside a UTF-8 character, so whatever is not ASCII is dropped before it.
  shorten =
    limit: text:
    if stringLength text <= limit then
      text
    else
      head (match "(.*[ -~])?[^ -~]*" (substring 0 limit text)) + "…";

  # A key as one would write it: bare where Nix allows that, else quoted.
  key =
    name: if match "[A-Za-z_][A-Za-z0-9_'-]{0,63}" name != null then name else shorten 60 (toJSON name);

  # Any value on one short line; never evaluates deeper than it shows and never throws.
  show =
    let
      sample =
        depth: render: items:
        if items == [ ] then
          ""
        else if depth == 0 then
          "… "
        else
          concatStringsSep " " (map render (take 4 items)) + (if length items > 4 then " … " else " ");
      go =
        depth: value:
        {
          lambda = "«function»";
          path = "«path ${toString value}»";
          list = "[ ${sample depth (go (depth - 1)) value}]";
          set =
            if value ? outPath then
              "«package»"
            else
              "{ ${sample depth (name: "${key name} = ${go (depth - 1) value.${name}};") (attrNames value)}}";
        }
        .${typeOf value} or (toJSON value);
    in
    value: shorten 100 (go 2 value);

  minimum = foldl' (a: b: if a < b then a else b);

  # Levenshtein's edit distance, row by row: a row holds the distances to every prefix of `b`.
  distance =
    a: b:
    let
      bs = chars b;
      nextRow =
        row: char:
        foldl' (
          next: i:
          next
          ++ [
            (minimum (elemAt row i + (if elemAt bs i == char then 0 else 1)) [
              (elemAt row (i + 1) + 1)
              (elemAt next i + 1)
            ])
          ]
        ) [ (head row + 1) ] (indices (length bs));
      last = foldl' nextRow (indices (length bs + 1)) (chars a);
    in
    elemAt last (length bs);

  # The candidate that a misspelt name was meant to be: it starts with it, or a third of its letters are wrong at most.
  # null when there is none.
  nearest =
    name: candidates:
    let
      size = stringLength name;
      score =
        candidate: if size >= 3 && substring 0 size candidate == name then 0 else distance name candidate;
      scored = map (candidate: {
        inherit candidate;
        score = score candidate;
      }) candidates;
      best = foldl' (a: b: if b.score < a.score then b else a) (head scored) scored;
    in
    if size <= 32 && best.score * 3 <= size then best.candidate else null;

  hexDigits = chars "0123456789abcdef";
  toHex =
    n: if n < 16 then elemAt hexDigits n else toHex (n / 16) + elemAt hexDigits (n - n / 16 * 16);
  # TOML knows hexadecimal, Nix does not. The caller has made sure that these are hex digits.
  fromHex = digits: (builtins.fromTOML "n = 0x${digits}").n;
in
{
  inherit
    chars
    distance
    fromHex
    indices
    key
    nearest
    shorten
    show
    toHex
    ;
}
