/* Where things lie in V8's objects and frames, from the v8dbg_* constants that every node exports for post-mortem
 * debuggers. Nothing is tabulated by version: a constant that is missing makes the layout unknown, and JavaScript frames
 * are left out.
 *
 * Runs once, on the thread that starts the agent, since it asks the loader. Refuses nothing to later callers: the
 * layout is read-only from then on.
 */
#include "internal.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>

static struct lag_v8_layout layout;
static bool is_known;

/* A constant under the first of its names that is there; newer V8 spells field types differently. */
static bool constant(int32_t *into, const char *const *names) {
    for (; *names != NULL; names++) {
        char full[128] = "v8dbg_";
        size_t length = strlen(*names);
        if (length + 7 > sizeof full) continue;
        memcpy(full + 6, *names, length + 1);
        const int32_t *found = dlsym(RTLD_DEFAULT, full);
        if (found == NULL) continue;
        *into = *found;
        return true;
    }
    return false;
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})
#define NEEDED(field, ...) \
    if (!constant(&found.field, NAMES(__VA_ARGS__))) return false
#define WANTED(field, ...) (void)constant(&found.field, NAMES(__VA_ARGS__))

static bool read_frames(struct lag_v8_layout *out) {
    struct lag_v8_layout found = *out;
    NEEDED(fp_context, "off_fp_context");
    NEEDED(fp_function, "off_fp_function");
    NEEDED(fp_bytecode_array, "off_fp_bytecode_array");
    NEEDED(fp_bytecode_offset, "off_fp_bytecode_offset");
    NEEDED(fp_args, "off_fp_args");
    NEEDED(frame_entry, "frametype_EntryFrame");
    NEEDED(frame_construct_entry, "frametype_ConstructEntryFrame");
    NEEDED(frame_exit, "frametype_ExitFrame");
    NEEDED(frame_builtin_exit, "frametype_BuiltinExitFrame");
    WANTED(frame_api_callback_exit, "frametype_ApiCallbackExitFrame");
    WANTED(frame_api_accessor_exit, "frametype_ApiAccessorExitFrame");
    NEEDED(frame_last, "frametype_NativeFrame");
    /* Slots of one frame: anything else is no frame that this code was written for. */
    if (found.fp_context >= 0 || found.fp_context < -256 || found.fp_function >= 0 || found.fp_function < -256 ||
        found.fp_bytecode_array >= 0 || found.fp_bytecode_array < -256 || found.fp_bytecode_offset >= 0 ||
        found.fp_bytecode_offset < -256 || found.fp_args < 0 || found.fp_args > 256)
        return false;
    *out = found;
    return true;
}

static bool read_objects(struct lag_v8_layout *out) {
    struct lag_v8_layout found = *out;
    int32_t tagged_size = 0, smi_shift = 0, tag = 0;
    if (!constant(&tagged_size, NAMES("TaggedSize", "PointerSizeLog2")) || !constant(&smi_shift, NAMES("SmiShiftSize")) ||
        !constant(&tag, NAMES("HeapObjectTag")))
        return false;
    /* Compressed pointers and 31-bit integers are another world (Electron, not node). */
    if (tagged_size != 8 || smi_shift != 31 || tag != 1) return false;
    NEEDED(map_instance_type, "class_Map__instance_type__uint16_t");
    NEEDED(function_shared, "class_JSFunction__shared__SharedFunctionInfo",
           "class_JSFunction__shared__Tagged_SharedFunctionInfo_");
    NEEDED(shared_name, "class_SharedFunctionInfo__name_or_scope_info__Object",
           "class_SharedFunctionInfo__name_or_scope_info__Tagged_Object_",
           "class_SharedFunctionInfo__name_or_scope_info__Tagged_NameOrScopeInfoT_");
    NEEDED(shared_script, "class_SharedFunctionInfo__script_or_debug_info__HeapObject",
           "class_SharedFunctionInfo__script__Tagged_HeapObject_", "class_SharedFunctionInfo__script__HeapObject",
           "class_SharedFunctionInfo__raw_script__Tagged_Object_");
    NEEDED(script_name, "class_Script__name__Object", "class_Script__name__Tagged_Object_");
    NEEDED(script_source, "class_Script__source__Object", "class_Script__source__Tagged_Object_");
    NEEDED(script_line_ends, "class_Script__line_ends__Object", "class_Script__line_ends__Tagged_Object_");
    NEEDED(bytecode_data, "class_BytecodeArray__data__uintptr_t");
    /* The table of positions moved up when the array got a wrapper for the sandbox. */
    int32_t wrapper;
    found.bytecode_positions =
        constant(&wrapper, NAMES("class_BytecodeArray__wrapper__Tagged_BytecodeWrapper_")) ? wrapper + 8 : 32;
    NEEDED(fixed_array_length, "class_FixedArrayBase__length__SMI");
    NEEDED(fixed_array_data, "class_FixedArray__data__uintptr_t");
    found.byte_array_data = found.fixed_array_data;
    NEEDED(scope_locals, "scopeinfo_idx_ncontextlocals");
    NEEDED(scope_first, "scopeinfo_idx_first_vars");
    NEEDED(type_shared, "type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE");
    NEEDED(type_script, "type_Script__SCRIPT_TYPE");
    NEEDED(type_bytecode, "type_BytecodeArray__BYTECODE_ARRAY_TYPE");
    NEEDED(type_scope_info, "type_ScopeInfo__SCOPE_INFO_TYPE");
    NEEDED(type_byte_array, "type_ByteArray__BYTE_ARRAY_TYPE");
    WANTED(type_trusted_byte_array, "type_TrustedByteArray__TRUSTED_BYTE_ARRAY_TYPE");
    NEEDED(type_fixed_array, "type_FixedArray__FIXED_ARRAY_TYPE");
    NEEDED(type_code, "type_Code__CODE_TYPE");
    WANTED(type_code_data_container, "type_CodeDataContainer__CODE_DATA_CONTAINER_TYPE");
    WANTED(type_interpreter_data, "type_InterpreterData__INTERPRETER_DATA_TYPE");
    WANTED(type_debug_info, "type_DebugInfo__DEBUG_INFO_TYPE");
    NEEDED(first_context, "FirstContextType");
    NEEDED(last_context, "LastContextType");
    *out = found;
    return true;
}

static bool read_strings(struct lag_v8_layout *out) {
    struct lag_v8_layout found = *out;
    NEEDED(not_string_mask, "IsNotStringMask");
    NEEDED(representation_mask, "StringRepresentationMask");
    NEEDED(encoding_mask, "StringEncodingMask");
    NEEDED(one_byte, "OneByteStringTag");
    NEEDED(cons, "ConsStringTag");
    NEEDED(external, "ExternalStringTag");
    NEEDED(sliced, "SlicedStringTag");
    NEEDED(thin, "ThinStringTag");
    NEEDED(string_length, "class_String__length__int32_t");
    NEEDED(string_chars, "class_SeqOneByteString__chars__char");
    NEEDED(cons_first, "class_ConsString__first__String", "class_ConsString__first__Tagged_String_");
    NEEDED(cons_second, "class_ConsString__second__String", "class_ConsString__second__Tagged_String_");
    NEEDED(sliced_parent, "class_SlicedString__parent__String", "class_SlicedString__parent__Tagged_String_");
    NEEDED(sliced_offset, "class_SlicedString__offset__SMI");
    NEEDED(thin_actual, "class_ThinString__actual__String", "class_ThinString__actual__Tagged_String_");
    NEEDED(external_resource, "class_ExternalString__resource__Object");
    *out = found;
    return true;
}

/* Only the request of an incoming message needs these. */
static bool read_properties(struct lag_v8_layout *out) {
    struct lag_v8_layout found = *out;
    int32_t mask, shift, dictionary, index_mask, index_shift, location_mask;
    NEEDED(map_bit_field3, "class_Map__bit_field3__int");
    NEEDED(map_inobject_start, "class_Map__inobject_properties_start_or_constructor_function_index__char");
    NEEDED(map_size_in_words, "class_Map__instance_size_in_words__char");
    NEEDED(map_descriptors, "class_Map__instance_descriptors_offset");
    NEEDED(descriptors_header, "class_DescriptorArray__header_size__uintptr_t");
    if (!constant(&mask, NAMES("bit_field3_number_of_own_descriptors_mask")) ||
        !constant(&shift, NAMES("bit_field3_number_of_own_descriptors_shift")) ||
        !constant(&dictionary, NAMES("bit_field3_is_dictionary_map_shift")) ||
        !constant(&index_mask, NAMES("prop_index_mask")) || !constant(&index_shift, NAMES("prop_index_shift")) ||
        !constant(&location_mask, NAMES("prop_location_mask")))
        return false;
    int32_t key = -1, details = -1, value = -1, size = -1;
    if (!constant(&key, NAMES("prop_desc_key")) || !constant(&details, NAMES("prop_desc_details")) ||
        !constant(&value, NAMES("prop_desc_value")) || !constant(&size, NAMES("prop_desc_size")))
        return false;
    if (key != 0 || details != 1 || size != 3) return false;
    found.own_descriptors_mask = (uint32_t)mask;
    found.own_descriptors_shift = (uint32_t)shift & 31;
    found.dictionary_shift = (uint32_t)dictionary & 31;
    found.property_index_mask = (uint32_t)index_mask;
    found.property_index_shift = (uint32_t)index_shift & 31;
    found.property_location_mask = (uint32_t)location_mask;
    *out = found;
    return true;
}

/* The executable segment that holds an address, and its file. */
struct text_search {
    uint64_t address, low, high, bias;
    char path[256];
};

static struct lag_uv_module uv_module;
static char uv_path[256];

static int find_text(struct dl_phdr_info *info, size_t size, void *raw) {
    (void)size;
    struct text_search *search = raw;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD || (segment->p_flags & PF_X) == 0) continue;
        uint64_t low = info->dlpi_addr + segment->p_vaddr, high = low + segment->p_memsz;
        if (search->address < low || search->address >= high) continue;
        search->low = low;
        search->high = high;
        search->bias = info->dlpi_addr;
        /* The executable itself has no name here. */
        const char *path = info->dlpi_name != NULL && info->dlpi_name[0] != 0 ? info->dlpi_name : "/proc/self/exe";
        size_t length = strlen(path);
        if (length < sizeof search->path) memcpy(search->path, path, length + 1);
        return 1;
    }
    return 0;
}

static void find_uv(void) {
    uint64_t queue_work = (uint64_t)dlsym(RTLD_DEFAULT, "uv_queue_work");
    struct text_search search = {.address = queue_work};
    uv_module.queue_work = 0;
    if (queue_work == 0) return;
    lag_scan_lock();
    (void)dl_iterate_phdr(find_text, &search);
    lag_scan_unlock();
    if (search.high == 0) return;
    memcpy(uv_path, search.path, sizeof uv_path);
    uv_module.bias = search.bias;
    uv_module.queue_work = queue_work;
}

const struct lag_uv_module *lag_v8_uv_module(void) { return &uv_module; }
int lag_v8_uv_file(void) { return uv_path[0] != 0 ? lag_file_open(uv_path) : -ENOENT; }

void lag_v8_layout_resolve(uint64_t address_in_v8) {
    is_known = false;
    find_uv();
    struct lag_v8_layout found;
    memset(&found, 0, sizeof found);
    if (!read_frames(&found) || !read_objects(&found) || !read_strings(&found)) return;
    found.has_properties = read_properties(&found);
    struct text_search search = {.address = address_in_v8};
    lag_scan_lock();
    (void)dl_iterate_phdr(find_text, &search);
    lag_scan_unlock();
    found.text_low = search.low;
    found.text_high = search.high;
    if (search.high == 0) return;
    layout = found;
    is_known = true;
}

const struct lag_v8_layout *lag_v8_layout(void) { return is_known ? &layout : NULL; }
