#!/bin/sh
# Step of the images: leave out what nothing of ours ever loads.
#
#   deploy/image/slim.sh ENVIRONMENT cuda|cpu
#
# From both: headers, static libraries, compilers, pip. From the CPU image besides: Triton and ptxas (kernels are compiled
# for devices alone), PyTorch's two libraries that are opened when a device is used, and the CUDA libraries that the rest
# of PyTorch does not link to. The others have to stay: the wheels of the package index are built for CUDA, and do not
# load without them. Wheels of PyTorch's CPU index (TORCH_INDEX) have none of this, and nothing is found to be removed.
set -eu

environment=${1:?usage: slim.sh ENVIRONMENT cuda|cpu}
kind=${2:?usage: slim.sh ENVIRONMENT cuda|cpu}
site=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
before=$(du -sm "$environment" | cut -f1)

rm -rf "$site/torch/include" "$site/torch/share/cmake" "$site"/torch/bin/protoc* "$site"/nvidia/*/include
find "$site" \( -name '*.a' -o -name 'libnvshmem_device.bc' \) -delete
case "$kind" in
    cuda) ;;
    cpu)
        rm -rf "$site/triton" "$site/torch/bin/ptxas"
        rm -f "$site/torch/lib/libtorch_cuda_linalg.so" "$site/torch/lib/libcaffe2_nvrtc.so"
        linked=$(for library in "$site"/torch/lib/*.so*; do ldd "$library"; done | awk '$2 == "=>" && $3 ~ /^\// {print $3}' |
            sort -u | xargs -r -n 1 readlink -f)
        find "$site/nvidia" -name '*.so*' -type f 2> /dev/null | while read -r library; do
            echo "$linked" | grep -qxF "$(readlink -f "$library")" || rm -f "$library"
        done
        ;;
    *)
        echo "slim.sh: cuda or cpu, not $kind" >&2
        exit 2
        ;;
esac
rm -rf "$site"/pip "$site"/pip-*.dist-info "$site"/setuptools "$site"/setuptools-*.dist-info "$environment"/bin/pip*
echo "$environment: $before MB before, $(du -sm "$environment" | cut -f1) MB after"
