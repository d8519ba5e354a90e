# Serve moves the replicas of this node to others, as from a machine that a cloud takes away.
node=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | sed -n 's/^--node_id=//p' | head -n 1)
timeout 30 ray drain-node --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
  --reason-message 'the pod stops' --deadline-remaining-seconds "$1"
# Until then, Kubernetes and load balancers still send requests.
sleep "$2"
for _ in $(seq "$1"); do
  # The brackets keep grep from finding this shell.
  cat /proc/[0-9]*/cmdline 2>/dev/null | grep -qa 'ray::[S]erveReplica' || break
  sleep 1
done
