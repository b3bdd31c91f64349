/* vpdpbusd of AVX-VNNI by AVX2, for machines that lack it: four products of unsigned with signed bytes are added to each lane, exactly. */
#include <immintrin.h>

static inline __m256i dpbusd_by_avx2(__m256i acc, __m256i u, __m256i s) {
    const __m256i low = _mm256_set1_epi16(255), ones = _mm256_set1_epi16(1);
    const __m256i even = _mm256_mullo_epi16(_mm256_and_si256(u, low), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    const __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(even, ones), _mm256_madd_epi16(odd, ones)));
}

#define _mm256_dpbusd_avx_epi32 dpbusd_by_avx2
