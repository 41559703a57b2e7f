"""The steps that Redis takes as one, in Lua. Times are the server's, so that replicas' clocks need not agree."""

from __future__ import annotations

_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"

# The first key says since when this server is known: it ends where nobody asks for ARGV[1] ms, as a new server's never
# began. Until it is ARGV[2] ms old, replicas may not all have told what they hold, and no place is given.
_SERVER = (
    _NOW
    + """
local since = tonumber(redis.call('GET', KEYS[1]) or now)
if since > now then since = now end
redis.call('SET', KEYS[1], string.format('%d', since), 'PX', ARGV[1])
local settled = now - since >= tonumber(ARGV[2])
"""
)

_WANTED = """
local function wanted(key, replica)
  local own = tonumber(redis.call('ZSCORE', key, replica) or 0) > now and 1 or 0
  return redis.call('ZCOUNT', key, '(' .. string.format('%d', now), '+inf') > own and 1 or 0
end
"""

# KEYS: server, places (sorted by their end), circuit ("end wait", ms), probe, who was refused (sorted by its end).
# ARGV: awake ms, settle ms, lease ms, place, "1" if the replica holds it, limit, at once, replica.
# Returns: granted, held all the same, places held by all, whether others were refused lately, circuit, ms until a
# probe, ms that it is open.
# A place that is not renewed ends with its lease: the replica that held it is dead.
ENTER = (
    _SERVER
    + _WANTED
    + """
local circuit, retry, wait = 'closed', 0, 0
local opened = redis.call('GET', KEYS[3])
if opened then
  local ends, lasts = string.match(opened, '(%d+) (%d+)')
  retry, wait = math.max(0, tonumber(ends) - now), tonumber(lasts)
  if retry > 0 and ARGV[7] ~= '1' then circuit = 'open'
  elseif redis.call('EXISTS', KEYS[4]) == 1 then circuit = 'probing'
  else circuit = 'probe' end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
local held = redis.call('ZSCORE', KEYS[2], ARGV[4]) or (ARGV[5] == '1' and not settled)
local granted = 0
if circuit == 'closed' or circuit == 'probe' then
  if held or (settled and redis.call('ZCARD', KEYS[2]) < tonumber(ARGV[6])) then
    granted, held = 1, true
    if circuit == 'probe' then redis.call('SET', KEYS[4], ARGV[8], 'PX', ARGV[3]) end
  elseif settled then
    redis.call('ZADD', KEYS[5], now + ARGV[3], ARGV[8])
    redis.call('PEXPIRE', KEYS[5], ARGV[3])
  end
end
if held then
  redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return {granted, held and 1 or 0, redis.call('ZCARD', KEYS[2]), wanted(KEYS[5], ARGV[8]), circuit, retry, wait}
"""
)

# KEYS: server, places.  ARGV: awake ms, settle ms, lease ms, place, limit.  Returns whether the place is given, for a
# call to come: so whoever is refused does not count as waiting.
KEEP = (
    _SERVER
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
if not settled or redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[5]) then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
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

# KEYS: server, places, probe, who was refused.
# ARGV: awake ms, settle ms, lease ms, replica, how many of these have a call, places...
# A call that runs is a fact, and not asked for; a place without a call is lost where its lease had ended.
# Returns whether others were refused lately, and the places that are lost.
RENEW = (
    _SERVER
    + _WANTED
    + """
local found = {wanted(KEYS[4], ARGV[4])}
for i = 6, #ARGV do
  if i < 6 + ARGV[5] or not settled or redis.call('ZSCORE', KEYS[2], ARGV[i]) then
    redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[i])
  else
    table.insert(found, ARGV[i])
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
if redis.call('GET', KEYS[3]) == ARGV[4] then redis.call('PEXPIRE', KEYS[3], ARGV[3]) end
return found
"""
)

# KEYS: server, replicas.  ARGV: awake ms, settle ms, replica, ms it counts.  Returns the replicas, and whether settled.
HELLO = (
    _SERVER
    + """
redis.call('ZADD', KEYS[2], now + ARGV[4], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
return {redis.call('ZCARD', KEYS[2]), settled and 1 or 0}
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
