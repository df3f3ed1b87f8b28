-- What a request to Ollama asks for, and the same request without what could reload, unpin or hold a slot.
-- Pure: knows nothing of NGINX. It cuts and puts in whole members and never writes a value anew that it does not change.
local byte, find, sub, lower, char = string.byte, string.find, string.sub, string.lower, string.char
local concat = table.concat

local body = {}

local DEPTH = 200
-- Options of sampling. Every other one belongs to the loading of a model, or to nothing that Ollama knows.
local SAMPLING = {}
for name in ([[num_keep seed num_predict top_k top_p min_p typical_p repeat_last_n temperature repeat_penalty
    presence_penalty frequency_penalty stop]]):gmatch("%S+") do
  SAMPLING[name] = true
end

local ESCAPES = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t", ['"'] = '"', ["\\"] = "\\", ["/"] = "/" }

local function refuse(text)
  error({ refused = text }, 0)
end

local function utf8(code)
  if code < 0x80 then
    return char(code)
  elseif code < 0x800 then
    return char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
  end
  return char(0xE0 + math.floor(code / 4096), 0x80 + math.floor(code / 64) % 64, 0x80 + code % 64)
end

-- The text of a string, escapes resolved. Surrogates stay three bytes each: no name that matters holds one.
local function decoded(raw)
  if not find(raw, "\\", 1, true) then
    return raw
  end
  local text = raw:gsub("\\(.)(%x?%x?%x?%x?)", function(sign, digits)
    if sign == "u" then
      if #digits < 4 then
        refuse("a \\u escape without four digits")
      end
      return utf8(tonumber(digits, 16))
    end
    return (ESCAPES[sign] or refuse("an unknown escape")) .. digits
  end)
  return text
end

-- A key as Ollama's decoder compares it: without regard to case, where two letters beyond ASCII fold into k and s.
local function folded(key)
  return lower((key:gsub("\226\132\170", "k"):gsub("\197\191", "s")))
end

local function space(text, at)
  return find(text, "[^ \t\r\n]", at) or #text + 1
end

-- `at` is an opening quote; the position after the closing one.
local function past_string(text, at)
  at = at + 1
  while true do
    local stop = find(text, '["\\]', at)
    if not stop then
      refuse("a string without an end")
    elseif byte(text, stop) == 34 then
      return stop + 1
    end
    at = stop + 2
  end
end

-- The position after the value that begins at `at`.
local function past_value(text, at)
  local first = byte(text, at)
  if first == 34 then
    return past_string(text, at)
  elseif first ~= 123 and first ~= 91 then
    local _, stop = find(text, "^[%w.+-]+", at)
    return stop and stop + 1 or refuse("a value is missing")
  end
  local open = {}
  while true do
    local sign = byte(text, at)
    if sign == 34 then
      at = past_string(text, at)
    elseif sign == 123 or sign == 91 then
      open[#open + 1] = sign + 2 -- { } and [ ] are two apart
      if #open > DEPTH then
        refuse("it is nested too deeply")
      end
      at = at + 1
    elseif sign == 125 or sign == 93 then
      if open[#open] ~= sign then
        refuse("brackets that do not match")
      end
      open[#open] = nil
      at = at + 1
      if #open == 0 then
        return at
      end
    else
      refuse("it ends too early")
    end
    at = find(text, '["{}%[%]]', at) or #text + 1
  end
end

-- The members of the object at `at`: {key, folded, from, value, to}, positions in the text; and the position after it.
local function members(text, at)
  if byte(text, at) ~= 123 then
    refuse("it is no JSON object")
  end
  local found = {}
  at = space(text, at + 1)
  if byte(text, at) == 125 then
    return found, at + 1
  end
  while true do
    if byte(text, at) ~= 34 then
      refuse("a key is missing")
    end
    local after = past_string(text, at)
    local key = decoded(sub(text, at + 1, after - 2))
    local colon = space(text, after)
    if byte(text, colon) ~= 58 then
      refuse("a colon is missing")
    end
    local value = space(text, colon + 1)
    local past = past_value(text, value)
    found[#found + 1] = { key = key, folded = folded(key), from = at, value = value, to = past - 1 }
    at = space(text, past)
    local sign = byte(text, at)
    if sign == 125 then
      return found, at + 1
    elseif sign ~= 44 then
      refuse("a comma is missing")
    end
    at = space(text, at + 1)
  end
end

-- The elements of the array at `at`: {from, to}.
local function elements(text, at)
  local found = {}
  at = space(text, at + 1)
  while byte(text, at) ~= 93 do
    local past = past_value(text, at)
    found[#found + 1] = { from = at, to = past - 1 }
    at = space(text, past)
    if byte(text, at) == 44 then
      at = space(text, at + 1)
    elseif byte(text, at) ~= 93 then
      refuse("a comma is missing")
    end
  end
  return found
end

local function text_of(text, member)
  if byte(text, member.value) ~= 34 then
    return nil
  end
  return decoded(sub(text, member.value + 1, member.to - 1))
end

-- The member as it is where its number is a limit already, else with `most` for its number. No limit means the greatest.
local function limited(text, member, most)
  local value = sub(text, member.value, member.to)
  local number = find(value, "^[1-9]%d*$") and #value <= 15 and tonumber(value)
  if number and number <= most then
    return sub(text, member.from, member.to)
  end
  return sub(text, member.from, member.value - 1) .. most
end

-- An `options` object with its sampling options only, and never without a limit to the answer.
local function sampling(text, member, most)
  local kept, limit = {}, false
  local opening = byte(text, member.value)
  if opening ~= 123 and sub(text, member.value, member.to) ~= "null" then
    refuse("options is no object")
  end
  for _, option in ipairs(opening == 123 and members(text, member.value) or {}) do
    if option.key == "num_predict" then
      limit = true
      kept[#kept + 1] = limited(text, option, most)
    elseif SAMPLING[option.key] then
      kept[#kept + 1] = sub(text, option.from, option.to)
    end
  end
  if not limit then
    kept[#kept + 1] = '"num_predict":' .. most
  end
  return '"options":{' .. concat(kept, ",") .. "}"
end

local function rewritten(text, limit, most)
  local top, stop = members(text, space(text, 1))
  if space(text, stop) <= #text then
    refuse("there is more than one JSON value")
  end
  local seen, kept, model = {}, {}, nil
  for _, member in ipairs(top) do
    local name = member.folded
    -- Ollama would take the last of several, or mix them.
    if seen[name] then
      refuse("a key is there twice: " .. name)
    end
    seen[name] = true
    if name == "model" or name == "name" then
      if model then
        refuse("both model and name")
      end
      model = text_of(text, member) or refuse(name .. " is no text")
    end
    if name == "options" and limit == "num_predict" then
      kept[#kept + 1] = sampling(text, member, most)
    elseif name == limit then
      kept[#kept + 1] = limited(text, member, most)
    elseif name ~= "keep_alive" and name ~= "options" then
      kept[#kept + 1] = sub(text, member.from, member.to)
    end
  end
  if limit == "num_predict" and not seen.options then
    kept[#kept + 1] = '"options":{"num_predict":' .. most .. "}"
  elseif limit and limit ~= "num_predict" and not seen[limit] then
    kept[#kept + 1] = '"' .. limit .. '":' .. most
  end
  if not model then
    refuse("it names no model")
  end
  return { model = model, text = "{" .. concat(kept, ",") .. "}" }
end

-- Return {model, text}: the model that a request names, and the request as Ollama may have it; or nil and why it is refused.
--   limit  where the greatest number of tokens of an answer is said: num_predict (in `options`), max_tokens,
--          max_output_tokens; nil for requests that generate nothing
--   most   that number; requests without one, or with a greater one, get it
function body.rewrite(text, limit, most)
  local good, result = pcall(rewritten, text, limit, most)
  if good then
    return result
  end
  return nil, type(result) == "table" and result.refused or error(result, 0)
end

-- Return a list such as Ollama's with those rows only whose name `offered` says yes to, each byte by byte as it was.
--   list   the key that holds the array
--   name   the key in a row that holds the model's name
function body.filter(text, list, name, offered)
  local rows = {}
  local top, stop = members(text, space(text, 1))
  for _, member in ipairs(top) do
    if member.key == list and byte(text, member.value) == 91 then
      for _, element in ipairs(elements(text, member.value)) do
        for _, field in ipairs(members(text, element.from)) do
          if field.key == name and offered(text_of(text, field)) then
            rows[#rows + 1] = sub(text, element.from, element.to)
          end
        end
      end
      return sub(text, 1, member.value) .. concat(rows, ",") .. sub(text, member.to, stop - 1)
    elseif member.key == list then
      return sub(text, 1, member.value - 1) .. "[]" .. sub(text, member.to + 1, stop - 1)
    end
  end
  return text
end

return body
