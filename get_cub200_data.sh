#!/usr/bin/env bash
# Puts the images of CUB-200-2011 into the folder data/ next to this script.
#
# The data set is copyright Caltech, licensed CC BY 4.0: to pass it on or to
# publish with it, you have to name its authors.
set -euo pipefail
# With CDPATH set, cd could enter another folder of the same name, and print it.
unset CDPATH

# The address in older instructions, below www.vision.caltech.edu, does not exist any more.
url=${CUB200_URL:-https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1}
expected=$(printf '%s' "${CUB200_MD5:-97eceeb196236b17998738112f37df78}" | tr A-F a-f)

data="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)/data"
folder=$data/CUB_200_2011
archive=$data/CUB_200_2011.tgz
part=$archive.part
unpacking=$data/CUB_200_2011.unpacking

usage() {
    cat <<'END'
Usage: get_cub200_data.sh

Downloads CUB-200-2011 (1.1 GB) into the folder data/ next to this script and
unpacks it to data/CUB_200_2011. Run it again to continue a broken download.

Environment:
  CUB200_URL  another address of the archive
  CUB200_MD5  the MD5 sum of that archive, if it was packed again
END
}

fail() {
    printf 'get_cub200_data.sh: error: %s\n' "$*" >&2
    exit 1
}

have() {
    command -v "$1" >/dev/null 2>&1
}

md5_of() {
    # Reads standard input, because md5sum marks the sum of a file with an unusual name.
    if have md5sum; then
        md5sum <"$1" | cut -d ' ' -f 1
    else
        md5 -q <"$1"
    fi
}

size_of() {
    if [ -e "$1" ]; then wc -c <"$1"; else echo 0; fi
}

first_missing() {
    local name
    # Because of the slash after images a plain file of that name counts as missing.
    for name in images.txt image_class_labels.txt bounding_boxes.txt images/; do
        if [ ! -e "$1/$name" ]; then
            echo "$name"
            return
        fi
    done
}

# One transfer that continues $part. Sets outcome to complete, cannot-continue, or one of
# refused and broken with the reason.
fetch() {
    local status=0 code=000 options
    if have curl; then
        # Without --fail the page of an HTTP error would be stored as the archive.
        options=(--fail --location --continue-at - --show-error --output "$part"
            --connect-timeout 30 --speed-limit 1 --speed-time 60)
        # A progress bar is of no use in a log file.
        if [ -t 2 ]; then options+=(--progress-bar); else options+=(--silent); fi
        code=$(curl "${options[@]}" --write-out '%{http_code}' --url "$url") || status=$?
        # 33 is a server that ignores ranges. Some versions of curl take 416 for success.
        case $status/$code in
            33/* | */416) outcome=cannot-continue ;;
            0/*) outcome=complete ;;
            22/*) outcome="refused with HTTP status $code" ;;
            *) outcome="broken off (curl ended with $status)" ;;
        esac
    else
        options=(-c -t 1 -T 60 -O "$part")
        if [ ! -t 2 ]; then options+=(-nv); fi
        wget "${options[@]}" -- "$url" || status=$?
        case $status in
            0) outcome=complete ;;
            8) outcome="refused with an HTTP error" ;;
            *) outcome="broken off (wget ended with $status)" ;;
        esac
    fi
}

download() {
    local before
    have curl || have wget || fail "neither curl nor wget is installed: install one of them"
    echo "Downloading $url"
    echo "CUB-200-2011 is copyright Caltech, licensed CC BY 4.0."
    before=$(size_of "$part")
    fetch
    if [ "$before" -gt 0 ]; then
        # The part had a wrong sum, so a server that adds nothing to it cannot correct it. wget
        # reports an answer of 416 as a success.
        if [ "$outcome" = complete ] && [ "$(size_of "$part")" -eq "$before" ]; then
            outcome=cannot-continue
        fi
        if [ "$outcome" = cannot-continue ]; then
            echo "The server cannot continue the download: starting from scratch."
            rm -f "$part"
            fetch
        fi
    fi
    # wget creates the file before it knows the answer of the server.
    [ -s "$part" ] || rm -f "$part"
    case $outcome in
        complete) ;;
        refused*) fail "$url: $outcome; set CUB200_URL to another address" ;;
        *) fail "$url: $outcome; run again to continue, or set CUB200_URL" ;;
    esac
    [ -e "$part" ] || fail "$url: the answer is empty; set CUB200_URL to another address"
}

get_archive() {
    local sum
    if [ -e "$archive" ]; then
        # Perhaps the user put it there, so this script does not remove it.
        sum=$(md5_of "$archive")
        [ "$sum" = "$expected" ] ||
            fail "$archive has MD5 $sum, not $expected: remove it, or set CUB200_MD5"
        return
    fi
    # An earlier run may have ended between the last byte and the renaming.
    if [ ! -e "$part" ] || [ "$(md5_of "$part")" != "$expected" ]; then
        download
        sum=$(md5_of "$part")
        if [ "$sum" != "$expected" ]; then
            rm -f "$part"
            fail "$part has MD5 $sum, not $expected: removed;" \
                "run again to download from scratch, or set CUB200_MD5 for another archive"
        fi
    fi
    mv "$part" "$archive"
}

unpack() {
    local missing
    echo "Unpacking $archive"
    trap 'rm -rf "$unpacking"' EXIT
    mkdir "$unpacking"
    tar -xzf "$archive" -C "$unpacking" --no-same-owner ||
        fail "cannot unpack $archive: see the message of tar above"
    missing=$(first_missing "$unpacking/CUB_200_2011")
    [ -z "$missing" ] || fail "$archive holds no CUB_200_2011/$missing"
    # Moved only now, so that an interrupted run never looks complete.
    mv "$unpacking/CUB_200_2011" "$folder"
}

if [ $# -gt 0 ]; then
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
    esac
    usage >&2
    fail "unknown argument: $1"
fi

rm -rf "$unpacking"
if [ -e "$folder" ] || [ -L "$folder" ]; then
    missing=$(first_missing "$folder")
    [ -z "$missing" ] || fail "$folder lacks $missing: remove the folder and run again"
    echo "Nothing to do: $folder is complete."
    exit 0
fi
have md5sum || have md5 || fail "neither md5sum nor md5 is installed: install one of them"
mkdir -p "$data"
get_archive
unpack
echo "Done: $folder (CUB_200_2011.tgz is no longer needed)."
