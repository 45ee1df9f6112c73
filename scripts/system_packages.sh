#!/bin/sh
# System libraries of the simulators: OpenCV wants libGL and glib, MuJoCo renders through EGL or OSMesa.
# With --required (for images) it is an error if they cannot be installed.
packages="libgl1 libglib2.0-0 libegl1 libosmesa6"

if ! command -v dpkg >/dev/null 2>&1; then
    echo "setup: not a Debian-like system; for rendering install Mesa's libGL, libEGL and libOSMesa by your package manager"
    exit 0
fi
missing=""
for package in $packages; do
    # newer releases renamed some packages (libglib2.0-0t64)
    dpkg-query -W -f='${Status}\n' "$package" "${package}t64" 2>/dev/null | grep -q "install ok installed" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing; } >/dev/null 2>&1; then
    echo "setup: installed$missing"
else
    echo "setup: could not install system packages. Everything works without them but rendering simulators. To have it, run:"
    echo "    sudo apt-get install$missing"
    [ "$1" = --required ] && exit 1
fi
exit 0
