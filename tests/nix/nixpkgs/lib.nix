rec {
  inherit (builtins) mapAttrs replaceStrings;

  genAttrs =
    names: make:
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = make name;
      }) names
    );

  mapAttrsToList = make: set: map (name: make name set.${name}) (builtins.attrNames set);
  mapAttrs' = make: set: builtins.listToAttrs (mapAttrsToList make set);

  getExe' = package: name: "${package}/bin/${name}";
  getExe = package: getExe' package package.meta.mainProgram;
  getDev = package: package;

  makeBinPath = packages: builtins.concatStringsSep ":" (map (package: "${package}/bin") packages);
  makeLibraryPath =
    packages: builtins.concatStringsSep ":" (map (package: "${package}/lib") packages);

  licenses = {
    agpl3Plus = { };
    gpl2Only = { };
  };
  platforms.linux = [
    "x86_64-linux"
    "aarch64-linux"
  ];
}
