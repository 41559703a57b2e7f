"""The steps that Redis takes as one, in Lua. Times are the server's, so that replicas' clocks need not agree."""

from __future__ import annotations

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# KEYS: leases (sorted by their end), circuit ("end wait", ms), probe.  ARGV: lease, limit, lease ms, at once, replica.
# A place that is not renewed ends with its lease: the replica that held it is dead.
ENTER = (
    _NOW
    + """
local circuit, retry, wait = 'closed', 0, 0
local opened = redis.call('GET', KEYS[2])
if opened then
  local ends, lasts = string.match(opened, '(%d+) (%d+)')
  retry, wait = math.max(0, tonumber(ends) - now), tonumber(lasts)
  if retry > 0 and ARGV[4] ~= '1' then circuit = 'open'
  elseif redis.call('EXISTS', KEYS[3]) == 1 then circuit = 'probing'
  else circuit = 'probe' end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local running, granted = redis.call('ZCARD', KEYS[1]), 0
if (circuit == 'closed' or circuit == 'probe') and running < tonumber(ARGV[2]) then
  redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  if circuit == 'probe' then redis.call('SET', KEYS[3], ARGV[5], 'PX', ARGV[3]) end
  granted, running = 1, running + 1
end
return {granted, running, circuit, retry, wait}
"""
)

# KEYS: circuit, probe.  ARGV: wait ms, replica.  Another replica's probe is left alone.
OPEN = (
    _NOW
    + """
redis.call('SET', KEYS[1], string.format('%d %d', now + ARGV[1], ARGV[1]), 'PX', 600000)
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('DEL', KEYS[2]) end
"""
)

# KEYS: circuit, probe.  ARGV: replica, "1" to close the circuit.
RELEASE = """
if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
"""

# KEYS: leases, probe.  ARGV: lease ms, replica, leases...  What a replica runs is a fact, and not asked for.
RENEW = (
    _NOW
    + """
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if redis.call('GET', KEYS[2]) == ARGV[2] then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
"""
)

# KEYS: replicas, first seen.  ARGV: replica, ms it counts.  Returns the replicas, and the ms since the first one came.
HELLO = (
    _NOW
    + """
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('SET', KEYS[2], string.format('%d', now), 'NX')
return {redis.call('ZCARD', KEYS[1]), now - tonumber(redis.call('GET', KEYS[2]))}
"""
)

# KEYS: bucket.  ARGV: requests a minute.  A token bucket: returns the ms until the next request may be served, 0: now.
TAKE = (
    _NOW
    + """
local most = tonumber(ARGV[1])
local rate = most / 60000
local known = redis.call('HMGET', KEYS[1], 'left', 'at')
local left = math.min(most, (tonumber(known[1]) or most) + math.max(0, now - (tonumber(known[2]) or now)) * rate)
local wait = 0
if left >= 1 then left = left - 1 else wait = math.ceil((1 - left) / rate) end
redis.call('HSET', KEYS[1], 'left', tostring(left), 'at', string.format('%d', now))
redis.call('PEXPIRE', KEYS[1], 120000)
return wait
"""
)
