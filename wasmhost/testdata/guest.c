// A guest without Python, for the tests of wasmhost: what a record does is said by its value's first byte.
// Built by go generate; see ../guest_test.go.
typedef unsigned char u8;
typedef unsigned int u32;
typedef int i32;
typedef long long i64;
typedef unsigned long long u64;

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

IMPORT("kaspr", "tick") i32 host_tick(void);
IMPORT("kaspr", "die") void host_die(void);
IMPORT("kaspr", "host") i32 host_call(i32 op, const void *req, i32 len, void *resp, i32 cap);
IMPORT("wasi_snapshot_preview1", "proc_exit") void proc_exit(i32 code);
IMPORT("wasi_snapshot_preview1", "poll_oneoff") i32 poll_oneoff(const void *in, void *out, i32 n, void *events);
IMPORT("wasi_snapshot_preview1", "fd_write") i32 fd_write(i32 fd, const void *iovs, i32 n, void *written);

struct state {
	volatile u32 interrupt;
	u32 progress, result, resultLen, committed, report, reportLen, phase, operation;
	u32 reserved[7];
} kaspr_state = {.progress = 0xFFFFFFFF};

// Data that the image must hold and a restore must bring back.
static u32 counter = 0;
static u32 loaded = 0x12345678;
static u8 seed[64];
static u8 result[1 << 20];
static u32 used;
static volatile u32 raised;
static volatile u32 sink;

static void copy(void *to, const void *from, u32 n) { __builtin_memcpy(to, from, n); }
static u32 text(const char *s) { u32 n = 0; while (s[n]) n++; return n; }
static int find(const u8 *hay, u32 n, const char *needle) {
	u32 m = text(needle);
	for (u32 i = 0; i + m <= n; i++) {
		u32 j = 0;
		while (j < m && hay[i + j] == (u8)needle[j]) j++;
		if (j == m) return 1;
	}
	return 0;
}

static u8 *input;
static u32 inputCap;
extern u8 __heap_base;

EXPORT("kaspr_input") i32 kaspr_input(i32 n) {
	if ((u32)n > inputCap) {
		u32 pages = ((u32)n + 65535) / 65536;
		u32 at = __builtin_wasm_memory_grow(0, pages);
		if (at == 0xFFFFFFFF) return 0;
		input = (u8 *)(at * 65536);
		inputCap = pages * 65536;
	}
	return (i32)input;
}

EXPORT("kaspr_tick") void kaspr_tick(void) {
	kaspr_state.interrupt = 0;
	i32 answer = host_tick();
	if (answer == 1) raised = 1;
	if (answer == 2) {
		static const char report[] = "agents/orders.yaml:42\tenrich\nagents/orders.yaml:47\thelper\n";
		kaspr_state.report = (u32)report;
		kaspr_state.reportLen = sizeof report - 1;
		host_die();
	}
}

static void say(const char *s) {
	kaspr_state.result = (u32)s;
	kaspr_state.resultLen = text(s);
}

static void spin(void) { for (;;) sink++; }

EXPORT("kaspr_start") i32 kaspr_start(void) { counter = 0; return 0; }

EXPORT("kaspr_check") i32 kaspr_check(i32 n) {
	if (find(input, n, "SyntaxError")) {
		say("[{\"file\":\"a.yaml\",\"line\":3,\"column\":5,\"where\":\"init\",\"type\":\"SyntaxError\",\"message\":\"bad\"}]");
		return 1;
	}
	return 0;
}

EXPORT("kaspr_load") i32 kaspr_load(i32 n) {
	if (kaspr_check(n)) return 1;
	if (find(input, n, "load-spins")) spin();
	if (find(input, n, "load-traps")) __builtin_trap();
	loaded = 0x600DC0DE;
	return 0;
}

EXPORT("kaspr_reseed") i32 kaspr_reseed(i32 n) { copy(seed, input, n < 64 ? n : 64); return 0; }

static void put32(u32 v) { copy(result + used, &v, 4); used += 4; }
static void put64(u64 v) { copy(result + used, &v, 8); used += 8; }
static void put(const void *p, u32 n) { copy(result + used, p, n); used += n; }

static void output(u32 unit, const char *topic, const u8 *key, i32 keyLen, const u8 *value, i32 valueLen) {
	u32 start = used, name = topic ? text(topic) : 0, k = keyLen < 0 ? 0 : keyLen, v = valueLen < 0 ? 0 : valueLen;
	put32(44 + name + k + v);
	put32(1);
	put32(unit);
	put32(topic ? 0xFFFFFFFF : 0);
	put32(name);
	put32(0xFFFFFFFF);
	put64(0);
	put32(keyLen);
	put32(valueLen);
	put32(0);
	put(topic, name);
	put(key, k);
	put(value, v);
	(void)start;
}

static void failure(u32 unit, u32 kind, const char *type) {
	put32(32 + text(type));
	put32(2);
	put32(unit);
	put32(kind);
	put32(text(type));
	put32(0);
	put32(0);
	put32(0);
	put(type, text(type));
}

static void change(u32 unit, const u8 *key, i32 keyLen, const u8 *value, i32 valueLen) {
	put32(36 + keyLen + valueLen);
	put32(4);
	put32(unit);
	put32(0);
	put32(0xFFFFFFFF);
	put32(keyLen);
	put32(valueLen);
	put64(0);
	put(key, keyLen);
	put(value, valueLen);
}

static u32 number(const u8 *v, i32 n) {
	u32 x = 0;
	for (i32 i = 1; i < n && v[i] >= '0' && v[i] <= '9'; i++) x = x * 10 + (v[i] - '0');
	return x;
}

static u32 decimal(u8 *to, u32 v) {
	u8 digits[10];
	u32 n = 0;
	do { digits[n++] = '0' + v % 10; v /= 10; } while (v);
	for (u32 i = 0; i < n; i++) to[i] = digits[n - 1 - i];
	return n;
}

__attribute__((noinline)) static u32 recurse(volatile u32 *depth) {
	*depth += 1;
	u32 below = recurse(depth);
	return below + *depth;
}

static u32 fresh, cacheValid;

// one runs one record and returns the kind of its failure, or 0.
static u32 one(u32 unit, const u8 *key, i32 keyLen, const u8 *value, i32 valueLen) {
	u8 command = valueLen > 0 ? value[0] : 0;
	u8 buf[256];
	fresh = counter == 0;
	counter++;
	raised = 0;
	kaspr_state.phase = 3;
	kaspr_state.operation = 0;
	switch (command) {
	case 'f': return 1;
	case 'k': return 2;
	case 'l': spin(); break;
	case 'p': while (!raised) sink++; return 5;
	case 'P': { u32 n = number(value, valueLen); for (u32 i = 0; !raised || i < n; i++) sink++; return 5; }
	case 't': __builtin_trap();
	case 'T': if (!fresh) __builtin_trap(); break;
	case 'm':
		while (__builtin_wasm_memory_grow(0, 16) != 0xFFFFFFFFul) {}
		__builtin_trap();
	case 'i': if (!fresh) { kaspr_state.progress = 0xFFFFFFFF; __builtin_trap(); } break; // and nobody knows in which record
	case 'M': if (!fresh) return 6; break;
	case 'N': return 6;
	case 'g': {
		u32 pages = number(value, valueLen) * 16, at = __builtin_wasm_memory_grow(0, pages);
		if (at == 0xFFFFFFFFul) return 6;
		for (u32 i = 0; i < pages * 65536; i += 4096) ((volatile u8 *)(at * 65536))[i] = 1;
		break;
	}
	case 'x': proc_exit(3);
	case '@': { // reads the word at an address, and writes over it
		volatile u32 *at = (u32 *)number(value, valueLen);
		u32 was = *at;
		*at = 0x5EC4E7;
		output(unit, 0, key, keyLen, buf, decimal(buf, was));
		return 0;
	}
	case 'A': { // touches every page from an address on, again and again
		u32 first = number(value, valueLen);
		for (u32 at = first;; at = at + 4096 < at ? first : at + 4096) *(volatile u32 *)at = unit;
	}
	case 'G': { // grows, and says whether what it got is zeros
		u32 pages = number(value, valueLen), words = pages * 16384, *at = (u32 *)(__builtin_wasm_memory_grow(0, pages) * 65536), other = 0;
		for (u32 i = 0; i < words; i++) other |= at[i];
		output(unit, 0, key, keyLen, buf, decimal(buf, other));
		return 0;
	}
	case 'r': { volatile u32 depth = 0; sink = recurse(&depth); break; }
	case 'w': for (u32 i = 0, n = number(value, valueLen) * 1000; i < n; i++) sink++; break;
	case 'c': output(unit, 0, key, keyLen, buf, decimal(buf, counter)); return 0;
	case 's': output(unit, 0, key, keyLen, seed, 64); return 0;
	case 'z': {
		u64 nanos = number(value, valueLen) * 1000000ull;
		host_call(2, &nanos, 8, 0, 0);
		sink++;
		for (u32 i = 0; i < 3; i++) sink++;
		if (raised) return 5;
		break;
	}
	case 'Z': {
		u64 subscription[6] = {0, 0, 1, number(value, valueLen) * 1000000ull, 0, 0}, event[4];
		u32 events;
		poll_oneoff(subscription, event, 1, &events);
		for (u32 i = 0; i < 3; i++) sink++;
		if (raised) return 5;
		break;
	}
	case 'S': {
		u32 before = used;
		output(unit, "sent-to", key, keyLen, value, valueLen);
		u32 len = used - before;
		i32 n = host_call(3, result + before, len, buf, valueLen > 1 ? 2 : sizeof buf);
		used = before;
		if (n < -1 && n != (i32)0x80000000) n = host_call(3, result + before, len, buf, -1 - n);
		if (n < 0) return 1;
		output(unit, 0, key, keyLen, buf, n);
		return 0;
	}
	case 'B': { // sends, and traps then if it is not the first record of its instance
		u32 before = used;
		output(unit, "sent-to", key, keyLen, value, valueLen);
		host_call(3, result + before, used - before, buf, sizeof buf);
		used = before;
		if (!fresh) __builtin_trap();
		break;
	}
	case 'E': {
		i32 n = host_call(4, value + 1, valueLen - 1, buf, sizeof buf);
		if (n < 0) return 1;
		output(unit, 0, key, keyLen, buf, n);
		return 0;
	}
	case 'y': for (;;) { // lies about what is in progress: nothing, and the same record again
		kaspr_state.progress = 0xFFFFFFFF;
		for (u32 i = 0; i < 1000; i++) sink++;
		kaspr_state.progress = unit;
		for (u32 i = 0; i < 1000; i++) sink++;
	}
	case 'Y': for (u32 i = unit;; i++) { // one record after the other, without end
		kaspr_state.progress = i;
		for (u32 j = 0; j < 1000; j++) sink++;
	}
	case 'q': { // a host call whose request has the interrupt word in it
		i32 n = host_call(1, (u8 *)&kaspr_state - number(value, valueLen), 4, 0, 0);
		output(unit, 0, key, keyLen, buf, decimal(buf, n == (i32)0x80000000));
		return 0;
	}
	case 'L': {
		buf[0] = 30;
		copy(buf + 1, value + 1, valueLen - 1);
		host_call(1, buf, valueLen, 0, 0);
		u32 iov[2] = {(u32)(value + 1), valueLen - 1}, written;
		fd_write(1, iov, 1, &written);
		return 0;
	}
	case 'R': { // a refused host call
		i32 n = host_call(number(value, valueLen), value, 0xFFFFFFF, buf, 4);
		output(unit, 0, key, keyLen, buf, decimal(buf, n == (i32)0x80000000));
		return 0;
	}
	case 'H': for (u32 i = 0, n = number(value, valueLen); i < n; i++) host_call(0, value, 1, buf, 4); break;
	case 'o': kaspr_state.resultLen = 0xFFFFFFF0; break;
	case 'u': change(unit, key, keyLen, value, valueLen); break;
	case 'v': output(unit, 0, key, keyLen, buf, decimal(buf, cacheValid)); return 0;
	case 'd': output(unit, "made-up", key, keyLen, value, valueLen); return 0;
	}
	output(unit, 0, key, keyLen, value, valueLen);
	return 0;
}

static u32 word(u32 off) { u32 v; copy(&v, input + off, 4); return v; }

EXPORT("kaspr_process") i32 kaspr_process(i32 n) {
	if (n < 32 || word(0) != 0x3142534B || loaded != 0x600DC0DE) { say("not a batch, or not loaded"); return 1; }
	u32 count = word(4), flags = word(8);
	cacheValid = word(20);
	used = 0;
	kaspr_state.result = (u32)result;
	kaspr_state.resultLen = 0;
	kaspr_state.committed = 0;
	kaspr_state.reportLen = 0;
	u32 failed = 0, broken = 0;
	for (u32 i = 0; i < count; i++) {
		u32 at = 32 + i * 56, unit = flags & 1 ? 0 : i;
		kaspr_state.progress = unit;
		const u8 *key = input + word(at + 32), *value = input + word(at + 40);
		u32 kind = one(unit, key, (i32)word(at + 36), value, (i32)word(at + 44));
		if (kaspr_state.resultLen == 0xFFFFFFF0) broken = 1;
		if (kind && !failed) {
			failed = kind;
			failure(unit, kind, kind == 5 ? "DeadlineExceeded" : kind == 6 ? "MemoryError" : "ValueError");
		}
		if (flags & 1 && i + 1 < count) continue;
		put32(12);
		put32(3);
		put32(unit);
		kaspr_state.committed = used;
		kaspr_state.phase = 0;
		if (failed && flags & 2) break;
		failed = 0;
	}
	kaspr_state.progress = 0xFFFFFFFF;
	kaspr_state.resultLen = broken ? 0xFFFFFFF0 : used;
	return 0;
}
