# What a value may be. A type is a function from a raw value to `{ value; errors; }`: the value in its
# normal form, and everything that is wrong with it, each as `{ path; value; rule; fix; }`. No type throws.
let
  inherit (builtins)
    attrNames
    concatMap
    concatStringsSep
    elem
    filter
    fromJSON
    genList
    elemAt
    isAttrs
    isBool
    isInt
    isList
    isString
    length
    listToAttrs
    match
    stringLength
    toJSON
    typeOf
    ;
  inherit (import ./text.nix) nearest show;
  inherit (import ./yaml.nix) toYaml;

  valid = value: {
    inherit value;
    errors = [ ];
  };
  invalid = value: rule: fix: {
    value = null;
    errors = [
      {
        path = [ ];
        value = show value;
        inherit rule fix;
      }
    ];
  };
  # The same result, one level further out.
  at =
    step: result:
    result // { errors = map (error: error // { path = [ step ] ++ error.path; }) result.errors; };

  # std::regex recurses once per character, so a long text is refused before it is matched.
  matches = pattern: text: stringLength text <= 512 && match pattern text != null;

  satisfying =
    test: rule: fix: value:
    if test value then valid value else invalid value rule fix;
  # A second look at what a first type has accepted.
  also =
    first: second: value:
    let
      result = first value;
    in
    if result.errors == [ ] then second result.value else result;

  # What is handed to a program: Linux takes no argument of more than 128 KiB (execve(2)).
  argument = also text (
    satisfying (
      value: stringLength value <= 100000
    ) "must have at most 100000 bytes, as Linux takes no longer argument" "put it in a file in the state directory"
  );
  bool = satisfying isBool "must be true or false" "write true or false without quotes";
  text = satisfying isString "must be a string" "put it in double quotes";
  matching =
    pattern: rule: fix:
    also text (satisfying (matches pattern) rule fix);
  intBetween =
    low: high: what:
    satisfying (value: isInt value && value >= low && value <= high)
      "must be ${what}, an integer from ${toString low} to ${toString high}"
      "write it as a plain number in that range";
  oneOf =
    choices:
    satisfying (
      value: elem value choices
    ) "must be one of ${concatStringsSep ", " (map show choices)}" "write one of them";
  nullOr = type: value: if value == null then valid null else type value;

  listOf =
    what: type: value:
    if !isList value then
      invalid value "must be a list of ${what}" "write [ … ]"
    else
      let
        items = genList (i: at i (type (elemAt value i))) (length value);
      in
      {
        value = map (item: item.value) items;
        errors = concatMap (item: item.errors) items;
      };

  # `check name value` judges one attribute.
  attrsOf =
    what: check: value:
    if !isAttrs value then
      invalid value "must be an attribute set of ${what}" "write { … }"
    else
      let
        names = attrNames value;
        items = map (name: at name (check name value.${name})) names;
      in
      {
        value = listToAttrs (
          genList (i: {
            name = elemAt names i;
            value = (elemAt items i).value;
          }) (length names)
        );
        errors = concatMap (item: item.errors) items;
      };

  # An attribute set with just these fields, `{ type; default?; }` each. Its value holds the fields that are
  # right, even when others are wrong, so that what depends on them can be judged too.
  record =
    what: fields: value:
    if !isAttrs value then
      invalid value "must be ${what}"
        "write { … } with the fields ${concatStringsSep ", " (attrNames fields)}"
    else
      let
        read =
          name:
          let
            field = fields.${name};
          in
          if value ? ${name} then
            at name (field.type value.${name})
          else if field ? default then
            valid field.default
          else
            at name missing;
        missing = {
          value = null;
          errors = [
            {
              path = [ ];
              value = "(missing)";
              rule = "is required";
              fix = "add it to ${what}";
            }
          ];
        };
        unknown =
          name:
          let
            guess = nearest name (attrNames fields);
          in
          (at name (
            invalid value.${name} "is not a field of ${what}" (
              if guess == null then
                "the fields are ${concatStringsSep ", " (attrNames fields)}"
              else
                "did you mean ${guess}?"
            )
          )).errors;
        results = map (name: {
          inherit name;
          result = read name;
        }) (attrNames fields);
      in
      {
        value = listToAttrs (
          map (
            { name, result }:
            {
              inherit name;
              inherit (result) value;
            }
          ) (filter (entry: entry.result.errors == [ ]) results)
        );
        errors =
          concatMap unknown (filter (name: !(fields ? ${name})) (attrNames value))
          ++ concatMap (entry: entry.result.errors) results;
      };

  # Data that survives a trip through JSON and YAML unchanged. Paths and packages would silently turn into strings; of a
  # number Nix 2.8 keeps six digits; "1e+22" is a string to YAML 1.1, and a key of more than 1024 characters is none.
  json =
    let
      depthLimit = 64;
      go =
        depth: value:
        if depth > depthLimit then
          invalid "…" "must not be nested deeper than ${toString depthLimit} levels" "flatten it"
        else
          {
            lambda = invalid value "must be plain data, and a function is not" "apply it or leave it out";
            path = invalid value "must be plain data, and a path is not" "put it in double quotes";
            list = listOf "JSON values" (go (depth + 1)) value;
            set =
              if value ? outPath || value ? __toString then
                invalid value "must be plain data, and a package is not" "write the text that you mean"
              else
                attrsOf "JSON values" (
                  name: item:
                  if stringLength (toYaml name) > 1000 then
                    invalid name "must be a key of at most 1000 characters, as JSON has it" "choose a shorter one"
                  else
                    go (depth + 1) item
                ) value;
            float =
              if match "-?[0-9]+(\\.[0-9]+(e[-+][0-9]+)?)?" (toJSON value) != null && fromJSON (toJSON value) == value then
                valid value
              else
                invalid value "must be a number that JSON and YAML keep to its last digit"
                  "round it to six digits, or put it in double quotes";
          }
          .${typeOf value} or (valid value);
    in
    go 0;

  port = intBetween 1 65535 "a port";
in
{
  inherit
    also
    argument
    attrsOf
    bool
    intBetween
    invalid
    json
    listOf
    matches
    matching
    nullOr
    oneOf
    port
    record
    satisfying
    text
    valid
    ;
}
