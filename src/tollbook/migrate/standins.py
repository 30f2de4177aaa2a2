"""What uuid-ossp and pgcrypto are where a server of our own lacks them: so many schemas begin with them.

Hashes, HMACs and UUIDs by name are right. Passwords and encryption fit together, and keep nothing secret.
"""

# Nothing of PostgreSQL's own computes it: of `data`, into `answer`.
SHA1 = r"""
DECLARE
    most CONSTANT bigint := 4294967295; a bigint; b bigint; c bigint; d bigint; e bigint; t bigint;
    h bigint[] := ARRAY[1732584193, 4023233417, 2562383102, 271733878, 3285377520]; w bigint[];
    m bytea := data || '\x80'::bytea || decode(repeat('00', (119 - length(data) % 64) % 64), 'hex')
        || int8send(length(data) * 8::bigint);
BEGIN
    FOR block IN 0 .. length(m) / 64 - 1 LOOP
        FOR i IN 0 .. 79 LOOP
            IF i < 16 THEN
                w[i] := ('x' || encode(substring(m FROM block * 64 + i * 4 + 1 FOR 4), 'hex'))::bit(32)
                    ::bigint;
            ELSE
                t := w[i - 3] # w[i - 8] # w[i - 14] # w[i - 16];
                w[i] := ((t << 1) | (t >> 31)) & most;
            END IF;
        END LOOP;
        a := h[1]; b := h[2]; c := h[3]; d := h[4]; e := h[5];
        FOR i IN 0 .. 79 LOOP
            t := e + w[i] + (((a << 5) | (a >> 27)) & most) + CASE i / 20
                WHEN 0 THEN ((b & c) | ((b # most) & d)) + 1518500249
                WHEN 1 THEN (b # c # d) + 1859775393
                WHEN 2 THEN ((b & c) | (b & d) | (c & d)) + 2400959708
                ELSE (b # c # d) + 3395469782 END;
            e := d; d := c; c := ((b << 30) | (b >> 2)) & most; b := a; a := t & most;
        END LOOP;
        h := ARRAY[(h[1] + a) & most, (h[2] + b) & most, (h[3] + c) & most, (h[4] + d) & most,
            (h[5] + e) & most];
    END LOOP;
    answer := (SELECT string_agg(substring(int8send(x) FROM 5), '' ORDER BY n)
        FROM unnest(h) WITH ORDINALITY u (x, n));
END;
"""
SPACES = {"nil": "00000000-0000-0000-0000-000000000000"} | {
    f"ns_{name}": f"6ba7b81{digit}-9dad-11d1-80b4-00c04fd430c8"
    for name, digit in (("dns", 0), ("url", 1), ("oid", 2), ("x500", 4))
}
SPACE = "CREATE FUNCTION uuid_{0}() RETURNS uuid IMMUTABLE STRICT LANGUAGE sql AS $$ SELECT '{1}'::uuid $$;\n"
RANDOM = "CREATE FUNCTION uuid_generate_{0}() RETURNS uuid STRICT LANGUAGE internal AS 'gen_random_uuid';\n"
BY_NAME = """
CREATE FUNCTION uuid_generate_v{0}(namespace uuid, name text) RETURNS uuid IMMUTABLE STRICT LANGUAGE plpgsql
AS $$ DECLARE data bytea := uuid_send(namespace) || convert_to(name, 'UTF8'); answer bytea; BEGIN {1}
    answer := set_byte(answer, 6, (get_byte(answer, 6) & 15) | ({0} * 16));
    answer := set_byte(answer, 8, (get_byte(answer, 8) & 63) | 128);
    RETURN encode(substring(answer FROM 1 FOR 16), 'hex');
END $$;
"""
UUID_OSSP = "".join(
    (
        *(SPACE.format(name, value) for name, value in SPACES.items()),
        *(RANDOM.format(version) for version in ("v1", "v1mc", "v4")),
        BY_NAME.format(3, "answer := decode(md5(data), 'hex');"),
        BY_NAME.format(5, SHA1),
    )
)
DIGEST = f"""
CREATE FUNCTION digest(data bytea, kind text) RETURNS bytea IMMUTABLE STRICT LANGUAGE plpgsql AS $$
DECLARE answer bytea; BEGIN
    CASE lower(kind)
    WHEN 'md5' THEN answer := decode(md5(data), 'hex');
    WHEN 'sha224' THEN answer := sha224(data);
    WHEN 'sha256' THEN answer := sha256(data);
    WHEN 'sha384' THEN answer := sha384(data);
    WHEN 'sha512' THEN answer := sha512(data);
    WHEN 'sha1' THEN {SHA1}
    ELSE RAISE 'Cannot use "%": No such hash algorithm', kind USING ERRCODE = '22023';
    END CASE;
    RETURN answer;
END $$;
"""
# Bodies that are read as they are made find each other wherever the extension lies.
CRYPTO = (
    DIGEST  # noqa: S608 -- nobody's input is in it
    + r"""
CREATE FUNCTION digest(text, text) RETURNS bytea IMMUTABLE STRICT
    RETURN digest(convert_to($1, getdatabaseencoding()), $2);
CREATE FUNCTION hmac(bytea, bytea, text) RETURNS bytea IMMUTABLE STRICT BEGIN ATOMIC
    SELECT digest(string_agg(set_byte('\x00', 0, get_byte(key, i) # 92), ''::bytea ORDER BY i)
        || digest(string_agg(set_byte('\x00', 0, get_byte(key, i) # 54), ''::bytea ORDER BY i) || $1, $3), $3)
    FROM (SELECT CASE WHEN lower($3) IN ('sha384', 'sha512') THEN 128 ELSE 64 END AS size) s,
        LATERAL (SELECT CASE WHEN length($2) > size THEN digest($2, $3) ELSE $2 END AS k) k,
        LATERAL (SELECT k || decode(repeat('00', size - length(k)), 'hex') AS key) x,
        generate_series(0, size - 1) i;
END;
CREATE FUNCTION hmac(text, text, text) RETURNS bytea IMMUTABLE STRICT
    RETURN hmac(convert_to($1, getdatabaseencoding()), convert_to($2, getdatabaseencoding()), $3);
CREATE FUNCTION gen_random_uuid() RETURNS uuid LANGUAGE internal AS 'gen_random_uuid';
CREATE FUNCTION gen_random_bytes(integer) RETURNS bytea STRICT LANGUAGE sql AS $$
    SELECT substring(string_agg(uuid_send(pg_catalog.gen_random_uuid()), ''::bytea) FROM 1 FOR $1)
    FROM generate_series(0, $1 / 16) $$;
CREATE FUNCTION gen_salt(text, integer) RETURNS text STRICT LANGUAGE sql
    AS $$ SELECT '$2a$' || lpad($2::text, 2, '0') || '$' || left(md5(random()::text), 22) $$;
CREATE FUNCTION gen_salt(text) RETURNS text STRICT RETURN gen_salt($1, 6);
CREATE FUNCTION crypt(text, text) RETURNS text IMMUTABLE STRICT LANGUAGE sql
    AS $$ SELECT rpad($2, 29, '.') || left(md5($1 || rpad($2, 29, '.')), 31) $$;
CREATE FUNCTION pgp_key_id(bytea) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS $$ SELECT 'ANYKEY' $$;
CREATE FUNCTION armor(bytea) RETURNS text IMMUTABLE STRICT RETURN E'-----BEGIN PGP MESSAGE-----\n\n'
    || encode($1, 'base64') || E'\n-----END PGP MESSAGE-----\n';
CREATE FUNCTION armor(bytea, text[], text[]) RETURNS text IMMUTABLE STRICT RETURN armor($1);
CREATE FUNCTION dearmor(text) RETURNS bytea IMMUTABLE STRICT
    RETURN decode(regexp_replace($1, '-----[^-]*-----', '', 'g'), 'base64');
CREATE FUNCTION pgp_armor_headers(text, OUT key text, OUT value text) RETURNS SETOF record IMMUTABLE STRICT
    LANGUAGE sql AS $$ SELECT ''::text, ''::text WHERE false $$;
"""
)
# What is locked comes out as it went in.
KEPT = {
    "bytea": "$1",
    "text to bytea": "convert_to($1, getdatabaseencoding())",
    "bytea to text": "convert_from($1, getdatabaseencoding())",
}
LOCKED = "CREATE FUNCTION {0}({1}) RETURNS {2} IMMUTABLE STRICT RETURN {3};\n"


def _lock() -> str:
    """Return the functions that encrypt and decrypt."""
    made = [
        (f"{verb}{iv}", f"bytea, bytea, {more}text", "bytea", "bytea")
        for verb in ("encrypt", "decrypt")
        for iv, more in (("", ""), ("_iv", "bytea, "))
    ]
    for way, plain in (("sym", "text"), ("pub", "bytea")):
        for more in ("", ", text") if way == "sym" else ("", ", text", ", text, text"):
            if more.count("text") < 2:
                made.append((f"pgp_{way}_encrypt", f"text, {plain}{more}", "bytea", "text to bytea"))
                made.append((f"pgp_{way}_encrypt_bytea", f"bytea, {plain}{more}", "bytea", "bytea"))
            made.append((f"pgp_{way}_decrypt", f"bytea, {plain}{more}", "text", "bytea to text"))
            made.append((f"pgp_{way}_decrypt_bytea", f"bytea, {plain}{more}", "bytea", "bytea"))
    return "".join(LOCKED.format(name, given, answer, KEPT[how]) for name, given, answer, how in made)


PGCRYPTO = CRYPTO + _lock()
KNOWN = {"uuid-ossp": ("1.1", UUID_OSSP), "pgcrypto": ("1.3", PGCRYPTO)}
