# Read by the steps of the images (. sources.sh): where packages come from, and how pip behaves. Expects $root.
# shellcheck shell=sh
PIP_DISABLE_PIP_VERSION_CHECK=1
PIP_NO_CACHE_DIR=1
PIP_ROOT_USER_ACTION=ignore
export PIP_DISABLE_PIP_VERSION_CHECK PIP_NO_CACHE_DIR PIP_ROOT_USER_ACTION
brought="${root:?}/deploy/air-gapped/brought"
if [ -n "$(find "$brought" -name '*.whl' -print -quit)" ]; then
    PIP_NO_INDEX=1
    PIP_FIND_LINKS="$brought/wheels"
    export PIP_NO_INDEX PIP_FIND_LINKS
fi
