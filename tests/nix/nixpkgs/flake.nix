# A stand-in for nixpkgs, so that the project's flake can be evaluated, and its hop images be put
# together, without network. It has only what the flake uses, refuses what nixpkgs refuses, and
# every program in it is the one file `program` beside this one (tests/kernel/test_flake.py).
{
  outputs =
    { self }:
    let
      lib = import ./lib.nix;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
    in
    {
      inherit lib;
      legacyPackages = lib.genAttrs systems (system: import ./packages.nix { inherit lib system; });
    };
}
