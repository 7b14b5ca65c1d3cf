#!/bin/sh
# Publishes the life of one job over HTTP, with nothing but a shell and curl.
# Usage: RELAY_URL=http://127.0.0.1:8080 sh worker.sh JOB [OWNER [ATTEMPT]]
set -u
job=${1:?usage: sh worker.sh JOB [OWNER [ATTEMPT]]}
owner=${2:--}
attempt=${3:-1} # a job that has ended begins anew with a higher one
relay=${RELAY_URL:-http://127.0.0.1:8080}
steps=${STEPS:-20}
run=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
count=0

# offer PATH BODY: connection trouble, 429 and 5xx are tried again for up to 15 seconds. The key is the same
# at each try, so that what was accepted without an answer is not published twice.
offer() {
    answer=$(curl --silent --show-error --write-out ' %{http_code}' \
        --retry 8 --retry-max-time 15 --retry-connrefused --max-time 5 \
        --header 'content-type: application/json' \
        --header "idempotency-key: $owner.$job.$run.$count" \
        ${RELAY_TOKEN:+--header "authorization: Bearer $RELAY_TOKEN"} \
        --data "$2" "$relay/v1/jobs/$job$1?owner=$owner")
    case $answer in
        *' 202') return 0 ;;
        *' 429' | *' 5'?? | *' 000') return 1 ;;
        # the relay has said what is wrong with the update; asking again would not help
        *) echo "refused: $answer" >&2 && return 2 ;;
    esac
}

# Progress that cannot be delivered is left out; what follows replaces it.
publish() {
    count=$((count + 1))
    offer "$1" "$2"
}

# The last state is offered until it is accepted, for ten minutes.
end() {
    # from here on a signal ends the worker at once
    trap - INT TERM
    count=$((count + 1))
    give_up=$(($(date +%s) + 600))
    while :; do
        offer '' "$1" && return
        [ $? -eq 2 ] && break
        [ "$(date +%s)" -lt "$give_up" ] || exit 1
        sleep 2
    done
    # what the relay does not take ends the job too
    count=$((count + 1))
    offer '' '{"status":"failed","attempt":'"$attempt"',"error":{"code":"worker","message":"the ending was rejected"}}'
    exit 1
}

# Ctrl-C, and what a supervisor sends before it kills.
trap 'end "{\"status\":\"cancelled\",\"attempt\":$attempt,\"message\":\"the worker was stopped\"}"; exit 130' INT TERM

# Stands for the real work; at most ten updates a second.
step=0
while [ "$step" -lt "$steps" ]; do
    step=$((step + 1))
    sleep 0.1
    if [ "$step" = "${FAIL_AT:-0}" ]; then
        end '{"status":"failed","attempt":'"$attempt"',"error":{"code":"worker","message":"step '"$step"' went wrong"}}'
        exit 1
    fi
    publish '' '{"status":"running","attempt":'"$attempt"',"current":'"$step"',"total":'"$steps"',"unit":"steps"}'
    if [ "$step" = $((steps / 2)) ]; then
        publish /milestones/half_way '{"step":'"$step"'}'
    fi
done
end '{"status":"completed","attempt":'"$attempt"',"progress":100,"result":{"steps":'"$steps"'}}'
