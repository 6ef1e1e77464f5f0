#!/bin/sh
# The browser tests need Chromium and the fonts of the pages: use what is there, else fetch it.
set -eu
bin=$1
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq chromium fonts-liberation fonts-dejavu-core >/dev/null
    else
        "$bin/playwright" install chromium
    fi
fi
