#!/bin/sh
# Two machines, as far as the network is concerned: a namespace each, and a cable between them. Needs root and iproute2.
# PYTHON=python OUTPUT=results ARGUMENTS="--model_name_or_path …" two_machines.sh, from where hf_gelu_patch is found
set -eu
ip netns add one; ip netns add two
trap 'ip netns del one; ip netns del two' EXIT
ip link add cable1 netns one type veth peer name cable2 netns two
ip -n one address add 10.77.0.1/24 dev cable1; ip -n two address add 10.77.0.2/24 dev cable2
for space in one two; do ip -n "$space" link set lo up; done
ip -n one link set cable1 up; ip -n two link set cable2 up
start() {  # NAMESPACE NODE_RANK INTERFACE FOLDER
    GLOO_SOCKET_IFNAME="$3" ip netns exec "$1" "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc_per_node 2 \
        --node_rank "$2" --master_addr 10.77.0.1 --master_port 29500 \
        -m hf_gelu_patch evaluate --num_processes 4 --output_dir "$4" $ARGUMENTS > "$4.log" 2>&1
}
start two 1 cable2 "$OUTPUT/two" &
other=$!
start one 0 cable1 "$OUTPUT/one"
wait "$other"
