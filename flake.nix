# chainctl, its hop images and a shell to work on it, for those who have Nix. docs/images.md
# says what was tried of it. Everything else in the project works without Nix.
{
  description = "VPN onion chains and the identity firewall in front of them";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});

      chainctl = pkgs: pkgs.callPackage ./images/chainctl.nix { src = self; };
      images =
        pkgs:
        pkgs.callPackage ./images/hops.nix {
          chainctl = chainctl pkgs;
          revision = self.rev or self.dirtyRev or "unknown";
        };
    in
    {
      packages = forEach (
        pkgs:
        let
          hops = images pkgs;
          archives = lib.mapAttrs (_: hop: hop.archive) hops;
        in
        archives
        // {
          default = chainctl pkgs;
          chainctl = chainctl pkgs;
          # A script that streams an image of the supervisor itself: ./result | docker load
          supervisor = pkgs.callPackage ./images/supervisor.nix { chainctl = chainctl pkgs; };
          images = pkgs.linkFarm "chainctl-images" (
            lib.mapAttrsToList (name: path: {
              name = "${name}.tar.gz";
              inherit path;
            }) archives
          );
        }
      );

      apps = forEach (pkgs: {
        default = {
          type = "app";
          program = "${chainctl pkgs}/bin/chainctl";
        };
      });

      # The same contract that images from Debian packages are held to.
      checks = forEach (
        pkgs:
        lib.mapAttrs' (name: hop: {
          name = "${name}-contract";
          value = hop.contract;
        }) (images pkgs)
        // {
          chainctl = chainctl pkgs;
        }
      );

      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ (chainctl pkgs) ];
          packages = with pkgs; [
            clang-tools
            gnumake
            iperf3
            iproute2
            mypy
            openvpn
            ruff
            strace
            wireguard-tools
          ];
        };
      });
    };
}
