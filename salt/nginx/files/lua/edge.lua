-- The API edge: who asks, what they may ask for, and which instance answers. The request's body is body.lua's.
local cjson = require("cjson.safe")
local ffi = require("ffi")
local body = require("body")

ffi.cdef([[
  unsigned char *SHA256(const unsigned char *d, size_t n, unsigned char *md);
  typedef struct { size_t count; char **paths; size_t offset; int flags; void *functions[5]; } glob_t;
  int glob(const char *pattern, int flags, void *on_error, glob_t *found);
  void globfree(glob_t *found);
]])

local edge = {}

local RELOAD_SECONDS = 0.5
-- What is offered, and where a request says how long its answer may be; false where nothing is generated.
local POST = {
  ["/api/generate"] = "num_predict",
  ["/api/chat"] = "num_predict",
  ["/api/embed"] = false,
  ["/api/embeddings"] = false,
  ["/api/show"] = false,
  ["/v1/chat/completions"] = "max_tokens",
  ["/v1/completions"] = "max_tokens",
  ["/v1/responses"] = "max_output_tokens",
  ["/v1/embeddings"] = false,
}
-- Lists: the keys of the array and of a row's name.
local LISTS = { ["/api/tags"] = { "models", "name" }, ["/v1/models"] = { "data", "id" } }

local OPENAI_TYPE = { [401] = "authentication_error", [403] = "permission_error", [429] = "rate_limit_error" }
local FAILURES = {
  [400] = "the request is malformed",
  [401] = "an API key is needed: Authorization: Bearer <key>",
  [413] = "the request is too large",
  [429] = "too many requests at once or in a second; try again later",
  [502] = "the model's instance does not answer",
  [503] = "the model's instance is busy",
  [504] = "the model's instance did not answer in time",
}

local files = {} -- {path = {text, data}}
local folder

local function load_file(name)
  local path = folder .. "/" .. name
  local file = io.open(path)
  local text = file and file:read("*a") or ""
  if file then
    file:close()
  end
  if files[name] and files[name].text == text then
    return
  end
  local data = cjson.decode(text)
  if type(data) ~= "table" then
    ngx.log(ngx.ERR, path, " is missing or damaged: nobody is let in until it is there again")
    data = {}
  end
  files[name] = { text = text, data = data }
end

local function load_files()
  load_file("keys.json")
  load_file("routes.json")
end

-- Read both files now and whenever they change from now on; no reload of NGINX is needed for a new or revoked key.
function edge.start(where)
  folder = where
  load_files()
  ngx.timer.every(RELOAD_SECONDS, load_files)
end

local function routes()
  return files["routes.json"].data.models or {}
end

local function fingerprint(text)
  local digest = ffi.new("unsigned char[32]")
  ffi.C.SHA256(text, #text, digest)
  return (ffi.string(digest, 32):gsub(".", function(sign)
    return string.format("%02x", sign:byte())
  end))
end

-- The files of a pattern, in the order in which NGINX includes them: it asks the same function.
local function included(pattern)
  local found, paths = ffi.new("glob_t"), {}
  if ffi.C.glob(pattern, 0, nil, found) == 0 then
    for at = 0, tonumber(found.count) - 1 do
      paths[#paths + 1] = ffi.string(found.paths[at])
    end
    ffi.C.globfree(found)
  end
  return paths
end

-- Keep the digest of the files that this NGINX was loaded with, for whoever wants to know whether they are current:
-- those of the pattern, then the others.
function edge.note(pattern, ...)
  local texts, paths = {}, included(pattern)
  for _, path in ipairs({ ... }) do
    paths[#paths + 1] = path
  end
  for _, path in ipairs(paths) do
    local file = assert(io.open(path, "rb"))
    texts[#texts + 1] = file:read("*a")
    file:close()
  end
  edge.loaded = fingerprint(table.concat(texts))
end

local function path_of(uri)
  return uri:match("^[^?#]*")
end

-- Answer with an error in the words of the API that was called; it ends the request.
local function refuse(status, message)
  -- What a client wrote may be no text at all.
  message = message:gsub("[^ -~]", "?"):sub(1, 300)
  local answer = { error = message }
  if path_of(ngx.var.request_uri):find("^/v1") then
    answer = { error = { message = message, type = OPENAI_TYPE[status] or "invalid_request_error", code = status } }
  end
  ngx.status = status
  ngx.header["Content-Type"] = "application/json"
  if status == 401 then
    ngx.header["WWW-Authenticate"] = 'Bearer realm="API"'
  end
  ngx.say(cjson.encode(answer))
  return ngx.exit(status)
end

-- The row of a key, or nil. One that is not known may have been made since the file was last read.
local function row_of(token)
  local hash = fingerprint(token)
  if not files["keys.json"].data[hash] then
    load_file("keys.json")
  end
  return files["keys.json"].data[hash]
end

-- Find out whose key the request carries; limits count by that name, or by address where there is none.
function edge.identify()
  local given = ngx.req.get_headers()["authorization"]
  local token = type(given) == "string" and given:match("^Bearer ([!-~]+)$")
  local key = token and #token <= 512 and row_of(token)
  ngx.ctx.key = key or nil
  ngx.var.api_key = key and key.name or "-"
  ngx.var.api_client = key and "key " .. key.name or ngx.var.remote_addr
end

-- The route of a model that is offered, by one of its names; nil for any other.
local function route_of(name)
  local plain = name:gsub(":latest$", "")
  return routes()[plain], plain
end

local function may_use(key, name, route)
  if type(key.slots) ~= "table" then
    return true
  end
  for _, wanted in ipairs(key.slots) do
    if wanted == route.slot or wanted == name then
      return true
    end
  end
  return false
end

-- Any instance serves where none is named: all of them share one store.
local function forward(instance, path)
  ngx.var.edge_upstream = instance and "ollama_" .. instance or "ollama"
  ngx.var.edge_path = path
end

-- The route of the model that a request names, or an error: 404 for an unknown one, 403 for one of other keys.
local function admitted(name)
  local route, plain = route_of(name)
  ngx.var.api_model = route and plain or "-"
  if not route then
    return refuse(404, "model '" .. name .. "' not found")
  elseif not may_use(ngx.ctx.key, plain, route) then
    return refuse(403, "this key may not use the model '" .. plain .. "'")
  end
  return route, plain
end

local function given_body()
  local encoding = ngx.req.get_headers()["content-encoding"]
  if encoding and encoding ~= "identity" then
    return refuse(415, "a compressed request is not taken")
  end
  ngx.req.read_body()
  local data = ngx.req.get_body_data()
  local path = not data and ngx.req.get_body_file()
  if path then
    local file = io.open(path, "rb")
    data = file and file:read("*a")
    if file then
      file:close()
    end
  end
  return data or ""
end

local function generate(path, limit)
  local request, why = body.rewrite(given_body(), limit or nil, files["routes.json"].data.max_tokens)
  if not request then
    return refuse(400, "the request is refused: " .. why)
  end
  local route = admitted(request.model)
  ngx.req.set_body_data(request.text)
  return forward(route.instance, path)
end

local function read(path)
  if LISTS[path] or path == "/api/version" then
    ngx.ctx.list = LISTS[path]
    return forward(nil, path)
  elseif path == "/" then
    ngx.header["Content-Type"] = "text/plain"
    ngx.print("Ollama is running")
    return ngx.exit(200)
  end
  local name = path:match("^/v1/models/([%w._:-]+)$")
  if name then
    local route, plain = admitted(name)
    return forward(route.instance, "/v1/models/" .. plain)
  end
  return refuse(403, path .. " is not offered here")
end

-- Let a request through to its instance, or answer it.
function edge.admit()
  if not ngx.ctx.key then
    return refuse(401, FAILURES[401])
  end
  -- As the client wrote it: NGINX's own view has dots, double slashes and escapes resolved already.
  local path, method = path_of(ngx.var.request_uri), ngx.req.get_method()
  if POST[path] ~= nil then
    if method ~= "POST" then
      return refuse(405, path .. " takes POST only")
    end
    return generate(path, POST[path])
  elseif method == "GET" or method == "HEAD" then
    return read(path)
  end
  return refuse(403, path .. " is not offered here")
end

-- A list will be shorter than its instance said.
function edge.head()
  if ngx.ctx.list and ngx.status == 200 then
    ngx.header["Content-Length"] = nil
  else
    ngx.ctx.list = nil
  end
end

-- Leave of a list what this key may use; all other answers pass as they come.
function edge.answer()
  local ctx = ngx.ctx
  if not ctx.list then
    return
  end
  ctx.pieces = (ctx.pieces or "") .. ngx.arg[1]
  ngx.arg[1] = nil
  if ngx.arg[2] and ctx.pieces ~= "" then
    ngx.arg[1] = body.filter(ctx.pieces, ctx.list[1], ctx.list[2], function(name)
      local route, plain = route_of(name or "")
      return route and may_use(ctx.key, plain, route)
    end)
  end
end

-- Say in JSON what NGINX itself refused, or what an instance did not answer.
function edge.failed()
  return refuse(ngx.status, FAILURES[ngx.status] or "the request failed")
end

return edge
